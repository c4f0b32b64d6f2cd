// Runs CUDA kernels on the CPU with the semantics of a GPU: every CUDA thread is a fiber, barriers
// and shuffles really wait, every block has shared memory of its own that starts as garbage, and
// threads and blocks take their turns in a random order. Types and half conversions are those of
// the CUDA toolkit's headers, which a C++ compiler can read; test_cuda_kernels.py rewrites
// `__shared__`.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>

#undef __launch_bounds__
#define __launch_bounds__(...)

extern uint3 threadIdx, blockIdx;  // of the thread that runs
extern dim3 blockDim, gridDim;

namespace cudasim {

enum Order { kFirstIn, kLastIn, kAny, kNumOrders };  // which of the waiting threads runs next
struct Schedule {
  Order order = kFirstIn;
  uint64_t seed = 0;      // of the order of blocks and threads
  unsigned preempt = 0;   // one in so many loads lets another thread run; 0: none
  unsigned resident = 1;  // blocks that run at once
};
extern Schedule schedule;
extern int launches_until_error;  // 0: the next one fails; negative: none does
extern const char* failure;       // of the last launch; null: it was fine
extern int launches;
extern int planted;  // the number of the planted fault that is awake; 0: none

void allow(const void* begin, size_t bytes);  // memory that loads may touch
void allow_nothing_more();

[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
void sync_block(int line);
uint64_t shuffle(unsigned mask, uint64_t value, int source, int line);
void check_load(const void* p, size_t bytes, size_t alignment);
void* shared(const char* key, size_t bytes);
cudaError_t launch(dim3 grid, dim3 block, const std::function<void()>& body);

template <class T>
T& shared_variable(const char* key) {
  return *static_cast<T*>(shared(key, sizeof(T)));
}

template <class T>
T shuffle_down(unsigned mask, T x, unsigned delta, int line) {
  uint64_t bits = 0;
  memcpy(&bits, &x, sizeof(T));
  bits = shuffle(mask, bits, static_cast<int>(threadIdx.x % 32 + delta), line);
  memcpy(&x, &bits, sizeof(T));
  return x;
}

}  // namespace cudasim

#define __syncthreads() ::cudasim::sync_block(__LINE__)
#define __shfl_down_sync(mask, x, delta) ::cudasim::shuffle_down(mask, x, delta, __LINE__)

template <class T>
inline T __ldg(const T* p) {
  ::cudasim::check_load(p, sizeof(T), sizeof(T));
  return *p;
}
inline uint64_t __umul64hi(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
}

template <class... Params, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...),
                               const Args&... args) {
  const std::tuple<Params...> copies{args...};
  return ::cudasim::launch(config->gridDim, config->blockDim, [&] { std::apply(kernel, copies); });
}
