// SiLU and exact GELU over a vector type V (cpu/vector_avx512.h), without a division: a vdivps of
// 16 lanes occupies its port for 16 cycles, as long as everything else here takes together.
//
// The functions advance N vectors step by step: one vector is a chain of some 25 dependent
// operations, and interleaving four of them gains 10 % over leaving it to the processor.
#pragma once

#include <cstddef>

#include "cpu/norm_act/activation_coefficients.h"

namespace tfq::cpu {
namespace {

// result <- sum over k of coefficients[k] * u^k, by Horner's rule.
template <typename V, int N, size_t K>
inline void polynomial(const float (&coefficients)[K], const typename V::Float (&u)[N],
                       typename V::Float (&result)[N]) {
  for (int i = 0; i < N; ++i) result[i] = V::set(coefficients[K - 1]);
  for (size_t k = 1; k < K; ++k) {
    for (int i = 0; i < N; ++i)
      result[i] = V::fma(result[i], u[i], V::set(coefficients[K - 1 - k]));
  }
}

// result <- exp(max(t, -87)) for t <= 0. NaN gives an arbitrary number; callers multiply by NaN.
template <typename V, int N>
inline void exp_negative(const typename V::Float (&t)[N], typename V::Float (&result)[N]) {
  typename V::Float power[N], remainder[N];
  for (int i = 0; i < N; ++i) {
    const typename V::Float clamped = V::max(V::set(kExpMin), t[i]);
    const typename V::Float shifted = V::fma(clamped, V::set(kLog2E), V::set(kRoundToInteger));
    const typename V::Float n = V::sub(shifted, V::set(kRoundToInteger));
    power[i] = V::power(n, shifted);
    remainder[i] = V::fma(n, V::set(-kLn2High), clamped);
    remainder[i] = V::fma(n, V::set(-kLn2Low), remainder[i]);
  }
  polynomial<V>(kExpCoefficients, remainder, result);
  for (int i = 0; i < N; ++i) result[i] = V::times_power_of_two(result[i], power[i]);
}

// With e = exp(-|x|): sigmoid(|x|) = 1 / (1 + e) and sigmoid(-|x|) = e / (1 + e).
template <typename V, int N>
inline void silu(typename V::Float (&x)[N]) {
  typename V::Float e[N], u[N], reciprocal[N];
  for (int i = 0; i < N; ++i) u[i] = V::minus_abs(x[i]);
  exp_negative<V>(u, e);
  for (int i = 0; i < N; ++i) u[i] = V::sub(e[i], V::set(kReciprocalCentre));
  polynomial<V>(kReciprocalCoefficients, u, reciprocal);
  for (int i = 0; i < N; ++i) {
    const typename V::Float clamped = V::max(V::set(kExpMin), x[i]);
    x[i] = V::mul(V::select_negative(clamped, V::mul(clamped, e[i]), clamped), reciprocal[i]);
  }
}

// Of a single vector.
template <typename V>
inline void silu(typename V::Float& x) {
  typename V::Float vectors[1] = {x};
  silu<V>(vectors);
  x = vectors[0];
}

// gelu(x) = x * normal_cdf(x), with normal_cdf(-|x|) = exp(-x^2 / 2) * tail(|x|).
template <typename V, int N>
inline void gelu(typename V::Float (&x)[N]) {
  typename V::Float u[N], e[N], tail[N];
  for (int i = 0; i < N; ++i) {
    x[i] = V::max(V::set(kGeluMin), x[i]);
    u[i] = V::mul(V::mul(x[i], V::set(-0.5f)), x[i]);
  }
  exp_negative<V>(u, e);
  for (int i = 0; i < N; ++i) {
    const typename V::Float minus_a = V::max(V::set(-kGaussTailEnd), V::minus_abs(x[i]));
    u[i] = V::sub(V::set(-kGaussTailCentre), minus_a);
  }
  polynomial<V>(kGaussTailCoefficients, u, tail);
  for (int i = 0; i < N; ++i) {
    const typename V::Float below = V::mul(e[i], tail[i]);
    const typename V::Float cdf = V::select_negative(x[i], below, V::sub(V::set(1.0f), below));
    x[i] = V::mul(x[i], cdf);
  }
}

}  // namespace
}  // namespace tfq::cpu
