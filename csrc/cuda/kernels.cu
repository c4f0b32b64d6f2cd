// The CUDA kernels. One pass: read student and teacher, write the gradient, reduce the loss.
//
// Bytes: 2 N read, N written; nothing else grows with N. Every thread sums its own elements in the
// accumulation type; from there on the sums are double: threads of a block by a fixed tree, blocks
// by block 0 in the order of their index, after a grid barrier. The launch is cooperative for the
// sake of that barrier: no counter that somebody must have zeroed, no float atomics, the same bits
// every run.
#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <utility>

#include "kernels.h"

namespace akd::cuda {
namespace {

constexpr int kThreads = 512;
// Independent 16-byte loads in flight per thread and tensor.
constexpr int kUnroll = 2;
// A single block, and no grid barrier, as long as a thread has at most this many trips to make.
constexpr int kTripsOfOneBlock = 4;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }

template <class A, class X>
__device__ __forceinline__ A load_as(X x) {
  if constexpr (std::is_same_v<X, double>) {
    return static_cast<A>(x);
  } else {
    return static_cast<A>(to_float(x));
  }
}

template <class X, class A>
__device__ __forceinline__ X store_as(A x) {
  if constexpr (std::is_same_v<X, __nv_bfloat16>) {
    return __float2bfloat16_rn(static_cast<float>(x));
  } else if constexpr (std::is_same_v<X, __half>) {
    return __float2half_rn(static_cast<float>(x));
  } else {
    return static_cast<X>(x);
  }
}

__device__ __forceinline__ double read(const Scalar& s) {
  if (s.device == nullptr) return s.value;
  switch (s.type) {
    case kDouble: return *static_cast<const double*>(s.device);
    case kFloat: return *static_cast<const float*>(s.device);
    case kBFloat16: return to_float(*static_cast<const __nv_bfloat16*>(s.device));
    default: return to_float(*static_cast<const __half*>(s.device));
  }
}

// kCount elements, moved 16 bytes at a time when they fill that much.
template <class X, int kCount>
struct alignas(sizeof(X) * kCount < 16 ? sizeof(X) * kCount : 16) Pack {
  X v[kCount];
};

template <class P, class X>
__device__ __forceinline__ P load_pack(const X* p) {
  P pack;
  if constexpr (sizeof(P) % sizeof(uint4) == 0) {
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(P) / sizeof(uint4)); ++i) {
      reinterpret_cast<uint4*>(&pack)[i] = __ldg(reinterpret_cast<const uint4*>(p) + i);
    }
  } else {
    pack = *reinterpret_cast<const P*>(p);
  }
  return pack;
}

template <class P, class X>
__device__ __forceinline__ void store_pack(X* p, const P& pack) {
  if constexpr (sizeof(P) % sizeof(uint4) == 0) {
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(P) / sizeof(uint4)); ++i) {
      reinterpret_cast<uint4*>(p)[i] = reinterpret_cast<const uint4*>(&pack)[i];
    }
  } else {
    *reinterpret_cast<P*>(p) = pack;
  }
}

// The sum over the block, in thread 0; a fixed tree.
__device__ __forceinline__ double block_sum(double x) {
  __shared__ double warp_sums[32];
#pragma unroll
  for (int lane = 16; lane > 0; lane >>= 1) x += __shfl_down_sync(~0u, x, lane);
  __syncthreads();  // warp_sums may still be read by the caller before
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = x;
  __syncthreads();
  const int warps = static_cast<int>(blockDim.x) / 32;
  x = static_cast<int>(threadIdx.x) < warps ? warp_sums[threadIdx.x] : 0.0;
  if (threadIdx.x < 32) {
#pragma unroll
    for (int lane = 16; lane > 0; lane >>= 1) x += __shfl_down_sync(~0u, x, lane);
  }
  return x;
}

// Bit i says whether element `first + i` lies in a row that the mask keeps.
template <int kCount>
__device__ __forceinline__ unsigned kept_bits(const uint8_t* mask, int64_t first, int64_t classes,
                                              bool narrow) {
  // A 64-bit division costs about four times a 32-bit one.
  int64_t row =
      narrow ? static_cast<uint32_t>(first) / static_cast<uint32_t>(classes) : first / classes;
  int64_t left = (row + 1) * classes - first;
  unsigned kept = mask[row] != 0;
  unsigned bits = kept;
#pragma unroll
  for (int i = 1; i < kCount; ++i) {
    if (--left == 0) {
      kept = mask[++row] != 0;
      left = classes;
    }
    bits |= kept << i;
  }
  return bits;
}

template <class S, class T, int kCount>
struct Worker {
  using A = accumulate_t<S, T>;
  using SPack = Pack<S, kCount>;
  using TPack = Pack<T, kCount>;

  A phi, scale;

  // kPacks packs, `stride` apart: all the loads first, then the arithmetic.
  template <int kPacks, bool kMasked>
  __device__ __forceinline__ A trip(const Forward& problem, int64_t first, int64_t stride,
                                    bool narrow) const {
    const S* student = static_cast<const S*>(problem.student);
    const T* teacher = static_cast<const T*>(problem.teacher);
    S* gradient = static_cast<S*>(problem.gradient);
    SPack s[kPacks];
    TPack t[kPacks];
    unsigned bits[kPacks];
#pragma unroll
    for (int u = 0; u < kPacks; ++u) {
      const int64_t i = (first + u * stride) * kCount;
      bits[u] = kMasked ? kept_bits<kCount>(problem.mask, i, problem.classes, narrow) : ~0u;
    }
#pragma unroll
    for (int u = 0; u < kPacks; ++u) {
      const int64_t i = (first + u * stride) * kCount;
      if (!kMasked || bits[u] != 0) {  // masked rows are not even read
        s[u] = load_pack<SPack>(student + i);
        t[u] = load_pack<TPack>(teacher + i);
      } else {
        s[u] = {};
        t[u] = {};
      }
    }
    A sum = 0;
#pragma unroll
    for (int u = 0; u < kPacks; ++u) {
      const int64_t i = (first + u * stride) * kCount;
      sum += pack(s[u], t[u], gradient == nullptr ? nullptr : gradient + i, bits[u]);
    }
    return sum;
  }

  template <bool kMasked>
  __device__ __forceinline__ A all_trips(const Forward& problem, int64_t first,
                                         int64_t stride) const {
    const bool narrow = problem.numel <= 0xffffffff;
    const int64_t packs = problem.numel / kCount;
    A sum = 0;
    int64_t p = first;
    for (; p + (kUnroll - 1) * stride < packs; p += kUnroll * stride) {
      sum += trip<kUnroll, kMasked>(problem, p, stride, narrow);
    }
    for (; p < packs; p += stride) sum += trip<1, kMasked>(problem, p, stride, narrow);
    return sum;
  }

  // Squares of one pack, added up; with a gradient, stores it. Elements without their bit give 0.
  __device__ __forceinline__ A pack(const SPack& s, const TPack& t, S* gradient,
                                    unsigned bits) const {
    SPack g;
    A sum = 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      A d = difference(load_as<A>(s.v[i]), load_as<A>(t.v[i]), phi);
      if (!((bits >> i) & 1)) d = 0;
      sum += d * d;
      g.v[i] = store_as<S>(d * scale);
    }
    if (gradient != nullptr) store_pack(gradient, g);
    return sum;
  }
};

template <class S, class T, int kCount>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(Forward problem, const int64_t* kept_rows, double* partial) {
  using W = Worker<S, T, kCount>;
  using A = typename W::A;
  const int64_t rows = kept_rows == nullptr ? problem.rows : *kept_rows;
  const double divisor = count(problem.reduction, rows, problem.classes);
  const W work = {
      static_cast<A>(read(problem.phi)),
      static_cast<A>(gradient_scale(std::is_same_v<S, __half>, divisor)),
  };

  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  A sum = problem.mask == nullptr ? work.template all_trips<false>(problem, thread, stride)
                                  : work.template all_trips<true>(problem, thread, stride);

  if constexpr (kCount > 1) {  // the elements after the last whole pack
    const int64_t i = problem.numel / kCount * kCount + thread;
    if (i < problem.numel) {
      const Worker<S, T, 1> one = {work.phi, work.scale};
      sum += problem.mask == nullptr ? one.template trip<1, false>(problem, i, 0, false)
                                     : one.template trip<1, true>(problem, i, 0, false);
    }
  }

  double total = block_sum(sum);
  if (gridDim.x > 1) {
    if (threadIdx.x == 0) partial[blockIdx.x] = total;
    cooperative_groups::this_grid().sync();
    if (blockIdx.x != 0) return;
    double mine = 0;
    for (unsigned b = threadIdx.x; b < gridDim.x; b += kThreads) mine += partial[b];
    total = block_sum(mine);
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    *static_cast<A*>(problem.loss) = static_cast<A>(total / divisor);
  }
}

// Rows that the mask keeps. One block: a mask has one byte for a whole row of logits.
__global__ void __launch_bounds__(kThreads)
    count_rows_kernel(const uint8_t* mask, int64_t rows, int64_t* kept) {
  const int64_t words = reinterpret_cast<uintptr_t>(mask) % sizeof(uint4) == 0 ? rows / 16 : 0;
  int64_t mine = 0;
  for (int64_t w = threadIdx.x; w < words; w += kThreads) {
    const uint4 x = __ldg(reinterpret_cast<const uint4*>(mask) + w);
    // 0xff for every byte that is not 0.
    mine += (__popc(__vcmpne4(x.x, 0)) + __popc(__vcmpne4(x.y, 0)) + __popc(__vcmpne4(x.z, 0)) +
             __popc(__vcmpne4(x.w, 0))) /
            8;
  }
  for (int64_t row = words * 16 + threadIdx.x; row < rows; row += kThreads) mine += mask[row] != 0;
  const double total = block_sum(static_cast<double>(mine));  // exact below 2^53
  if (threadIdx.x == 0) *kept = static_cast<int64_t>(total);
}

template <class X, int kCount>
__global__ void __launch_bounds__(kThreads)
    scale_kernel(X* __restrict__ x, int64_t numel, Scalar factor_, double constant) {
  const double factor64 = read(factor_) * constant;
  if (factor64 == 1.0) return;
  using A = accumulate_t<X, X>;
  using P = Pack<X, kCount>;
  const A factor = static_cast<A>(factor64);
  const int64_t packs = numel / kCount;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t p = thread; p < packs; p += stride) {
    P pack = *reinterpret_cast<const P*>(x + p * kCount);
#pragma unroll
    for (int i = 0; i < kCount; ++i) pack.v[i] = store_as<X>(load_as<A>(pack.v[i]) * factor);
    store_pack(x + p * kCount, pack);
  }
  if constexpr (kCount > 1) {
    const int64_t i = packs * kCount + thread;
    if (i < numel) x[i] = store_as<X>(load_as<A>(x[i]) * factor);
  }
}

constexpr int pack_count(size_t a, size_t b) { return static_cast<int>(16 / (a < b ? a : b)); }

template <class Body>
auto with_type(Type type, const Body& body) {
  switch (type) {
    case kFloat: return body(float{});
    case kDouble: return body(double{});
    case kBFloat16: return body(__nv_bfloat16{});
    default: return body(__half{});
  }
}

using ForwardKernel = void (*)(Forward, const int64_t*, double*);

struct Choice {
  ForwardKernel kernel;
  int count;  // elements of one pack
};

Choice choose(const Forward& problem, bool vector) {
  return with_type(problem.student_type, [&](auto s) {
    return with_type(problem.teacher_type, [&](auto t) -> Choice {
      using S = decltype(s);
      using T = decltype(t);
      constexpr int kCount = pack_count(sizeof(S), sizeof(T));
      if (vector) return {forward_kernel<S, T, kCount>, kCount};
      return {forward_kernel<S, T, 1>, 1};
    });
  });
}

bool is_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// Blocks that fit on the device at once: the grid of a cooperative launch. Asked once for every
// kernel and device: the answer costs two microseconds, as much as a small launch.
cudaError_t resident_blocks(const void* kernel, int device, int* blocks) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, int> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find({kernel, device});
  if (found != known.end()) {
    *blocks = found->second;
    return cudaSuccess;
  }
  int multiprocessors = 0, per_multiprocessor = 0;
  cudaError_t error =
      cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, kernel, kThreads, 0);
  if (error != cudaSuccess) return error;
  *blocks = known[{kernel, device}] = std::max(multiprocessors * per_multiprocessor, 1);
  return cudaSuccess;
}

}  // namespace

cudaError_t plan_forward(const Forward& problem, int device, Plan* plan) {
  plan->vector =
      is_aligned(problem.student) && is_aligned(problem.teacher) && is_aligned(problem.gradient);
  const Choice choice = choose(problem, plan->vector);
  const int64_t per_trip = static_cast<int64_t>(kThreads) * choice.count * kUnroll;
  const int64_t trips = (problem.numel + per_trip - 1) / per_trip;
  plan->blocks = 1;
  if (trips <= kTripsOfOneBlock) return cudaSuccess;
  int resident = 1;
  const cudaError_t error =
      resident_blocks(reinterpret_cast<const void*>(choice.kernel), device, &resident);
  plan->blocks = static_cast<int>(std::min<int64_t>(trips, resident));
  return error;
}

cudaError_t launch_forward(const Forward& problem, const Plan& plan, double* workspace,
                           cudaStream_t stream) {
  const Choice choice = choose(problem, plan.vector);
  const int64_t* kept_rows = nullptr;
  if (problem.mask != nullptr) {
    int64_t* kept = reinterpret_cast<int64_t*>(workspace + plan.blocks);
    count_rows_kernel<<<1, kThreads, 0, stream>>>(problem.mask, problem.rows, kept);
    const cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) return error;
    kept_rows = kept;
  }
  void* arguments[] = {const_cast<Forward*>(&problem), &kept_rows, &workspace};
  const void* kernel = reinterpret_cast<const void*>(choice.kernel);
  for (int blocks = plan.blocks; blocks > 1; blocks /= 2) {
    const cudaError_t error =
        cudaLaunchCooperativeKernel(kernel, blocks, kThreads, arguments, 0, stream);
    if (error != cudaErrorCooperativeLaunchTooLarge) return error;
    cudaGetLastError();  // forget it: only a part of the device is ours (a green context, MPS)
  }
  return cudaLaunchKernel(kernel, 1, kThreads, arguments, 0, stream);
}

cudaError_t launch_scale(void* x, Type type, int64_t numel, const Scalar& factor, double constant,
                         int device, cudaStream_t stream) {
  if (numel == 0) return cudaSuccess;
  return with_type(type, [&](auto zero) {
    using X = decltype(zero);
    constexpr int kCount = pack_count(sizeof(X), sizeof(X));
    const bool vector = is_aligned(x);
    const auto kernel = vector ? scale_kernel<X, kCount> : scale_kernel<X, 1>;
    int resident = 0;
    const cudaError_t error =
        resident_blocks(reinterpret_cast<const void*>(kernel), device, &resident);
    if (error != cudaSuccess) return error;
    const int64_t per_trip = static_cast<int64_t>(kThreads) * (vector ? kCount : 1);
    const int64_t trips = (numel + per_trip - 1) / per_trip;
    const int blocks = static_cast<int>(std::min<int64_t>(trips, resident));
    kernel<<<blocks, kThreads, 0, stream>>>(static_cast<X*>(x), numel, factor, constant);
    return cudaGetLastError();
  });
}

}  // namespace akd::cuda
