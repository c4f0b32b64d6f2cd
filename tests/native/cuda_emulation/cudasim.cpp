#include "cudasim.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#if defined(CUDASIM_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(CUDASIM_TSAN)
#include <sanitizer/tsan_interface.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cudasim {

Schedule schedule;
int launches_until_error = -1, launches, planted;
const char* failure;

namespace {

// ---- fibers ------------------------------------------------------------------------------------

constexpr size_t kStack = 64 * 1024;

struct Context {
#if defined(__x86_64__)
  void* sp = nullptr;
#else
  ucontext_t context;
#endif
  char* stack = nullptr;
  void* fake = nullptr;  // AddressSanitizer's
  void* tsan = nullptr;
};

#if defined(__x86_64__)
extern "C" void cudasim_switch(void** save, void* load);
asm(R"(
.text
.globl cudasim_switch
cudasim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
#endif

[[maybe_unused]] const void* main_stack;
[[maybe_unused]] size_t main_stack_size;

void jump(Context& from, Context& to, [[maybe_unused]] bool to_main) {
#if defined(CUDASIM_ASAN)
  __sanitizer_start_switch_fiber(&from.fake, to_main ? main_stack : to.stack,
                                 to_main ? main_stack_size : kStack);
#endif
#if defined(CUDASIM_TSAN)
  __tsan_switch_to_fiber(to.tsan, __tsan_switch_to_fiber_no_sync);
#endif
#if defined(__x86_64__)
  cudasim_switch(&from.sp, to.sp);
#else
  swapcontext(&from.context, &to.context);
#endif
#if defined(CUDASIM_ASAN)
  __sanitizer_finish_switch_fiber(from.fake, to_main ? nullptr : &main_stack,
                                  to_main ? nullptr : &main_stack_size);
#endif
}

// What ThreadSanitizer is told: a barrier orders what lies before it and after it.
void happens_before([[maybe_unused]] void* address) {
#if defined(CUDASIM_TSAN)
  __tsan_release(address);
#endif
}
void happens_after([[maybe_unused]] void* address) {
#if defined(CUDASIM_TSAN)
  __tsan_acquire(address);
#endif
}

// ---- threads, warps, blocks --------------------------------------------------------------------

struct Block;
struct Fiber {
  Context context;
  Block* block;
  unsigned thread;
  uint64_t received;  // by a shuffle
};
struct Warp {
  unsigned exited = 0, arrived = 0;
  int line = 0;
  uint64_t values[32];
  int sources[32];
};
struct Block {
  unsigned index;
  std::vector<Fiber*> threads;
  std::vector<Warp> warps;
  unsigned arrived = 0, exited = 0, generation = 0;
  int line = 0;
  std::vector<std::pair<const char*, char*>> shared;
  char sync[2];  // addresses for ThreadSanitizer: of even and odd barriers
};

std::vector<Fiber*> pool, ready;  // ready has room for all: nothing allocates while fibers run
std::vector<std::unique_ptr<Block>> blocks;
char* const arena = static_cast<char*>(mmap(nullptr, 1 << 26, PROT_READ | PROT_WRITE,
                                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
size_t arena_used;
Fiber* running;
Context main_context;
const std::function<void()>* body;
char start_sync, end_sync;
uint64_t random_state;
std::string failure_text;
cudaError_t last_error;
std::vector<std::pair<uintptr_t, uintptr_t>> ranges;

uint64_t random_bits() {  // splitmix64
  uint64_t z = (random_state += 0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

template <class V>
void shuffle_order(V& v) {
  for (size_t i = v.size(); i > 1; --i) std::swap(v[i - 1], v[random_bits() % i]);
}

void enter() {
  threadIdx = {running->thread, 0, 0};
  blockIdx = {running->block->index, 0, 0};
}

void pause() {  // until somebody puts this thread among the ready ones
  Fiber* me = running;
  jump(me->context, main_context, true);
  running = me;
  enter();
}

void leave() {
  Block& block = *running->block;
  Warp& warp = block.warps[running->thread / 32];
  warp.exited |= 1u << running->thread % 32;
  ++block.exited;
  if (warp.arrived != 0)
    fail("a thread ends while its warp waits in a shuffle, line %d", warp.line);
  if (block.arrived != 0) fail("a thread ends while its block waits, line %d", block.line);
}

void run_fiber() {
#if defined(CUDASIM_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, &main_stack, &main_stack_size);
#endif
  for (;;) {
    happens_after(&start_sync);
    enter();
    (*body)();
    leave();
    happens_before(&end_sync);
    jump(running->context, main_context, true);
  }
}

void prepare(Fiber* fiber) {
  Context& context = fiber->context;
  if (context.stack == nullptr) {
    context.stack = static_cast<char*>(mmap(nullptr, kStack, PROT_READ | PROT_WRITE,
                                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (context.stack == MAP_FAILED) abort();
  }
#if defined(CUDASIM_ASAN)
  __asan_unpoison_memory_region(context.stack, kStack);
#endif
#if defined(CUDASIM_TSAN)
  if (context.tsan) __tsan_destroy_fiber(context.tsan);
  context.tsan = __tsan_create_fiber(0);
#endif
#if defined(__x86_64__)
  void** top = reinterpret_cast<void**>(context.stack + kStack - 64);
  *--top = nullptr;  // the return address that run_fiber never uses; aligns the stack
  *--top = reinterpret_cast<void*>(run_fiber);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context.sp = top;
#else
  getcontext(&context.context);
  context.context.uc_stack.ss_sp = context.stack;
  context.context.uc_stack.ss_size = kStack;
  context.context.uc_link = nullptr;
  makecontext(&context.context, run_fiber, 0);
#endif
}

size_t first_ready;
Fiber* next() {
  if (schedule.order == kFirstIn) return ready[first_ready++];
  if (schedule.order == kAny) {
    std::swap(ready[first_ready + random_bits() % (ready.size() - first_ready)], ready.back());
  }
  Fiber* fiber = ready.back();
  ready.pop_back();
  return fiber;
}

// Blocks [first, last) of the order, all resident at once.
bool run_together(const std::vector<unsigned>& order, size_t first, size_t last) {
  blocks.clear();
  ready.clear();
  first_ready = arena_used = 0;
  ready.reserve(1 << 20);
  for (size_t b = first; b < last; ++b) {
    blocks.push_back(std::make_unique<Block>());
    Block& block = *blocks.back();
    block.index = order[b];
    block.warps.resize(blockDim.x / 32);
    block.shared.reserve(8);
    for (unsigned t = 0; t < blockDim.x; ++t) {
      const size_t used = (b - first) * blockDim.x + t;
      if (used == pool.size()) {
        pool.push_back(new Fiber());
        prepare(pool.back());
      }
      Fiber* fiber = pool[used];
      fiber->block = &block;
      fiber->thread = t;
      block.threads.push_back(fiber);
      ready.push_back(fiber);
    }
  }
  if (schedule.seed != 0) shuffle_order(ready);
  happens_before(&start_sync);
  while (first_ready < ready.size() && failure == nullptr) {
    running = next();
    if (first_ready > (1 << 18)) {
      ready.erase(ready.begin(), ready.begin() + first_ready);
      first_ready = 0;
    }
    jump(main_context, running->context, false);
  }
  for (auto& block : blocks) {
    if (failure == nullptr && block->exited != blockDim.x)
      failure = "deadlock: threads wait for ever";
  }
  happens_after(&end_sync);
  if (failure != nullptr) {
    for (Fiber* fiber : pool) prepare(fiber);  // their stacks are given up as they are
  }
  return failure == nullptr;
}

}  // namespace

void fail(const char* format, ...) {
  char text[400];
  va_list list;
  va_start(list, format);
  std::vsnprintf(text, sizeof(text), format, list);
  va_end(list);
  failure_text = std::string(text) + " (block " + std::to_string(running->block->index) +
                 ", thread " + std::to_string(running->thread) + ")";
  failure = failure_text.c_str();
  jump(running->context, main_context, true);
  abort();
}

void sync_block(int line) {
  Block& block = *running->block;
  if (block.arrived != 0 && block.line != line) {
    fail("two different __syncthreads at once, lines %d and %d", block.line, line);
  }
  if (block.exited != 0) fail("__syncthreads in line %d after a thread of the block ended", line);
  block.line = line;
  char* const sync = &block.sync[block.generation % 2];
  happens_before(sync);
  if (++block.arrived == block.threads.size()) {
    block.arrived = 0;
    ++block.generation;
    for (Fiber* fiber : block.threads) ready.push_back(fiber);
  }
  pause();
  happens_after(sync);
}

uint64_t shuffle(unsigned mask, uint64_t value, int source, int line) {
  Fiber* me = running;
  Warp& warp = me->block->warps[me->thread / 32];
  const unsigned lane = me->thread % 32;
  if (mask != ~0u) fail("shuffle in line %d: only whole warps are emulated", line);
  if (warp.exited != 0) fail("shuffle in line %d names threads that have ended", line);
  if (warp.arrived != 0 && warp.line != line) {
    fail("two different shuffles at once, lines %d and %d", warp.line, line);
  }
  warp.line = line;
  warp.values[lane] = value;
  warp.sources[lane] = source;
  warp.arrived |= 1u << lane;
  if (warp.arrived == ~0u) {
    warp.arrived = 0;
    for (unsigned i = 0; i < 32; ++i) {
      Fiber* fiber = me->block->threads[me->thread - lane + i];
      // From beyond the warp comes one's own value.
      fiber->received = warp.values[warp.sources[i] > 31 ? i : warp.sources[i]];
      ready.push_back(fiber);
    }
  }
  pause();
  return me->received;
}

void check_load(const void* p, size_t bytes, size_t alignment) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(p);
  if (at % alignment != 0) fail("misaligned: a load of %zu bytes at %p", bytes, p);
  if (std::none_of(ranges.begin(), ranges.end(), [&](const auto& range) {
        return at >= range.first && at + bytes <= range.second;
      })) {
    fail("out of bounds: a load of %zu bytes at %p", bytes, p);
  }
  if (schedule.preempt != 0 && random_bits() % schedule.preempt == 0) {
    ready.push_back(running);
    pause();
  }
}

void allow(const void* begin, size_t bytes) {
  const uintptr_t at = reinterpret_cast<uintptr_t>(begin);
  ranges.push_back({at, at + bytes});
}
void allow_nothing_more() { ranges.clear(); }

// Not strcmp: ThreadSanitizer would look over its shoulder.
static bool is_same(const char* a, const char* b) {
  while (*a != 0 && *a == *b) ++a, ++b;
  return *a == *b;
}

void* shared(const char* key, size_t bytes) {
  auto& variables = running->block->shared;
  for (const auto& [name, memory] : variables) {
    if (is_same(name, key)) return memory;
  }
  char* memory = arena + arena_used;
  arena_used += (bytes + 63) / 64 * 64;
  // Doubles are NaN. Volatile: no memset that ThreadSanitizer would take for the thread's doing.
  for (size_t i = 0; i < bytes; ++i) static_cast<volatile char*>(memory)[i] = char(0xff);
  variables.emplace_back(key, memory);
  return memory;
}

cudaError_t launch(dim3 grid, dim3 block, const std::function<void()>& kernel) {
  failure = nullptr;
  ++launches;
  if (launches_until_error >= 0 && launches_until_error-- == 0) {
    return last_error = cudaErrorLaunchOutOfResources;
  }
  if (grid.x == 0 || grid.x > 0x7fffffff || block.x == 0 || block.x > 1024 || block.x % 32 != 0) {
    return last_error = cudaErrorInvalidConfiguration;
  }
  gridDim = grid;
  blockDim = block;
  body = &kernel;
  random_state = schedule.seed;
#if defined(CUDASIM_TSAN)
  main_context.tsan = __tsan_get_current_fiber();
#endif
  std::vector<unsigned> order(grid.x);
  for (unsigned b = 0; b < grid.x; ++b) order[b] = b;
  if (schedule.seed != 0) shuffle_order(order);
  const size_t wave = std::max(1u, schedule.resident);
  for (size_t first = 0; first < grid.x; first += wave) {
    if (!run_together(order, first, std::min<size_t>(first + wave, grid.x))) {
      return last_error = cudaErrorLaunchFailure;
    }
  }
  return cudaSuccess;
}

}  // namespace cudasim

extern "C" cudaError_t cudaGetLastError() {
  return std::exchange(cudasim::last_error, cudaSuccess);
}
