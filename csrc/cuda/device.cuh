// Loads, stores, block sums: what every kernel is made of.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstring>

#include "kernels.h"

namespace akd::cuda {

constexpr int kThreads = 512;

// ---- numbers -----------------------------------------------------------------------------------

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

template <class S, class A>
__device__ __forceinline__ S store_gradient(A x) {
  if constexpr (std::is_same_v<S, __half>) saturate_half(x);
  return store_as<S>(x);
}

// ---- packs -------------------------------------------------------------------------------------

// kCount elements that move in one instruction: 16 bytes of the wider of two types, fewer of the
// other one.
template <class X, int kCount>
struct alignas(sizeof(X) * kCount) Pack {
  X v[kCount];
};

template <int kBytes>
struct WordOf;
template <>
struct WordOf<16> {
  using type = uint4;
};
template <>
struct WordOf<8> {
  using type = uint2;
};
template <>
struct WordOf<4> {
  using type = unsigned;
};
template <>
struct WordOf<2> {
  using type = unsigned short;
};

template <class P, class X>
__device__ __forceinline__ P load_pack(const X* p) {
  using Word = typename WordOf<sizeof(P)>::type;
  const Word word = __ldg(reinterpret_cast<const Word*>(p));
  P pack;
  memcpy(&pack, &word, sizeof(P));
  return pack;
}

template <class P, class X>
__device__ __forceinline__ void store_pack(X* p, const P& pack) {
  using Word = typename WordOf<sizeof(P)>::type;
  Word word;
  memcpy(&word, &pack, sizeof(P));
  *reinterpret_cast<Word*>(p) = word;
}

template <class X>
__device__ __forceinline__ X load(const X* p) {
  return load_pack<Pack<X, 1>>(p).v[0];
}

__device__ __forceinline__ double read(const void* p, Type type, int64_t i) {
  switch (type) {
    case kDouble: return load(static_cast<const double*>(p) + i);
    case kFloat: return load(static_cast<const float*>(p) + i);
    case kBFloat16: return to_float(load(static_cast<const __nv_bfloat16*>(p) + i));
    default: return to_float(load(static_cast<const __half*>(p) + i));
  }
}

__device__ __forceinline__ double read(const Scalar& s) {
  return s.device == nullptr ? s.value : read(s.device, s.type, 0);
}

// ---- sums --------------------------------------------------------------------------------------

// The sum over the block, in thread 0; always the same tree.
static __device__ __forceinline__ double block_sum(double x) {
  __shared__ double warp_sums[kThreads / 32];
#pragma unroll
  for (int lane = 16; lane > 0; lane >>= 1) x += __shfl_down_sync(~0u, x, lane);
  __syncthreads();  // warp_sums may still be read by the call before
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = x;
  __syncthreads();
  if (threadIdx.x < 32) {
    x = threadIdx.x < kThreads / 32 ? warp_sums[threadIdx.x] : 0.0;
#pragma unroll
    for (int lane = 16; lane > 0; lane >>= 1) x += __shfl_down_sync(~0u, x, lane);
  }
  return x;
}

// ---- division without dividing -----------------------------------------------------------------

// n / d = (4 n * magic) >> (64 + shift), exact for 0 <= n < 2^62: with 2^shift >= d the magic
// number ceil(2^(62 + shift) / d) is too large by less than 1, so the product by less than n <
// 2^62, which 2^(62 + shift) / d >= 2^62 / d keeps from reaching the next multiple. A 64-bit
// division is about 100 instructions, this is 8.
struct Divider {
  uint64_t magic;
  int shift;

  __device__ __forceinline__ int64_t quotient(int64_t n) const {
    return static_cast<int64_t>(__umul64hi(static_cast<uint64_t>(n) << 2, magic) >> shift);
  }
};

inline Divider divide_by(int64_t d) {
  if (d < 1) d = 1;  // nothing will be divided
  int shift = 0;
  while ((uint64_t{1} << shift) < static_cast<uint64_t>(d)) ++shift;
  const unsigned __int128 numerator = static_cast<unsigned __int128>(1) << (62 + shift);
  return {static_cast<uint64_t>((numerator + d - 1) / d), shift};
}

// ---- launches ----------------------------------------------------------------------------------

// Says how this launch went, not an earlier one; and what it says, nobody else will be told again.
template <class... Params>
cudaError_t launch(void (*kernel)(Params...), int64_t blocks, cudaStream_t stream,
                   const std::common_type_t<Params>&... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...);
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

}  // namespace akd::cuda
