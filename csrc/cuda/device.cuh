// Loads, stores, block sums: what every kernel is made of.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstring>
#include <type_traits>

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

template <class P>
using Word = typename WordOf<sizeof(P)>::type;

// What a pack is until its elements are needed: across a branch the compiler would hold each of
// them in a register of its own.
template <class P, class X>
__device__ __forceinline__ Word<P> load_word(const X* p) {
  return __ldg(reinterpret_cast<const Word<P>*>(p));
}

// The elements of a pack. Two of bfloat16 come out of 32 bits by a shift and an `and`; one by one
// the upper ones would cost two instructions.
template <class X, int kCount, class A>
__device__ __forceinline__ void widen(const Word<Pack<X, kCount>>& word, A (&values)[kCount]) {
  if constexpr (std::is_same_v<X, __nv_bfloat16> && kCount > 1) {
    uint32_t pairs[kCount / 2];
    memcpy(pairs, &word, sizeof(pairs));
#pragma unroll
    for (int e = 0; e < kCount; ++e) {
      const uint32_t bits = e % 2 == 0 ? pairs[e / 2] << 16 : pairs[e / 2] & 0xffff0000u;
      float value;
      memcpy(&value, &bits, sizeof(value));
      values[e] = static_cast<A>(value);
    }
  } else {
    X narrow[kCount];
    memcpy(narrow, &word, sizeof(narrow));
#pragma unroll
    for (int e = 0; e < kCount; ++e) values[e] = load_as<A>(narrow[e]);
  }
}

template <class P, class X>
__device__ __forceinline__ void store_pack(X* p, const P& pack) {
  Word<P> word;
  memcpy(&word, &pack, sizeof(P));
  *reinterpret_cast<Word<P>*>(p) = word;
}

__device__ __forceinline__ float magnitude(float x) { return fabsf(x); }
__device__ __forceinline__ double magnitude(double x) { return fabs(x); }

// A pack of gradients as it is stored. What is too large for float16 is so rare that one comparison
// of each element looks for it, and only then each is mended.
template <class S, int kCount, class A>
__device__ __forceinline__ Pack<S, kCount> gradient_pack(A (&gradient)[kCount]) {
  if constexpr (std::is_same_v<S, __half>) {
    bool too_large = false;
#pragma unroll
    for (int e = 0; e < kCount; ++e) too_large = too_large || magnitude(gradient[e]) > 65504;
    if (too_large) {
#pragma unroll
      for (int e = 0; e < kCount; ++e) saturate_half(gradient[e]);
    }
  }
  Pack<S, kCount> pack;
#pragma unroll
  for (int e = 0; e < kCount; ++e) pack.v[e] = store_as<S>(gradient[e]);
  return pack;
}

template <class X>
__device__ __forceinline__ X load(const X* p) {
  const Word<Pack<X, 1>> word = load_word<Pack<X, 1>>(p);
  X x;
  memcpy(&x, &word, sizeof(X));
  return x;
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

// x, and the compiler forgets where it comes from: it would work it out again in a loop.
__device__ __forceinline__ unsigned settled(unsigned x) {
  asm("" : "+r"(x));
  return x;
}

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

// The same in 32 bits, (2 n * magic) >> (32 + shift), exact for n < 2^31: 3 instructions.
struct SmallDivider {
  uint32_t magic;
  int shift;

  __device__ __forceinline__ uint32_t quotient(uint32_t n) const {
    return static_cast<uint32_t>((uint64_t{n << 1} * magic) >> 32) >> shift;
  }
};

inline int bits_for(int64_t d) {  // the smallest shift with 2^shift >= d
  int shift = 0;
  while ((uint64_t{1} << shift) < static_cast<uint64_t>(d)) ++shift;
  return shift;
}

inline Divider divide_by(int64_t d) {
  if (d < 1) d = 1;  // nothing will be divided
  const int shift = bits_for(d);
  const unsigned __int128 numerator = static_cast<unsigned __int128>(1) << (62 + shift);
  return {static_cast<uint64_t>((numerator + d - 1) / d), shift};
}

inline SmallDivider divide_small_by(int64_t d) {
  if (d < 1) d = 1;
  const int shift = bits_for(d);
  return {static_cast<uint32_t>(((uint64_t{1} << (31 + shift)) + d - 1) / d), shift};
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
