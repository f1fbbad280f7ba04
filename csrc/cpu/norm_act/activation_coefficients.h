// Minimax polynomials of the activations (Remez exchange in 50-digit arithmetic), lowest power
// first. The errors are those of the polynomials before their coefficients are rounded to float32;
// a test holds the functions built from them (activation.h) to the exact ones.
#pragma once

#include "common/math.h"

namespace tfq::cpu {
namespace {

// exp(r) for |r| <= ln(2)/2; relative error 1.9e-9.
constexpr float kExpCoefficients[] = {1.0f,          1.0f,          4.999999e-01f, 1.666642e-01f,
                                      4.166823e-02f, 8.374833e-03f, 1.3836815e-03f};

// 1 / (1 + e) for e in [0, 1], in powers of e - 0.5; relative error 4.4e-8. About the middle the
// terms shrink threefold each, so that rounding adds little; about 0 they would alternate at full
// size.
constexpr float kReciprocalCoefficients[] = {
    6.666667e-01f, -4.4444448e-01f, 2.9629043e-01f, -1.9752695e-01f, 1.3187325e-01f,
    -8.79155e-02f, 5.6497708e-02f,  -3.766514e-02f, 3.476782e-02f,   -2.3178548e-02f};
constexpr float kReciprocalCentre = 0.5f;

// normal_cdf(-a) * exp(a^2 / 2) for a in [0, 5], in powers of a - 2.5. The fit weighs its error
// like that of (a + 0.3) * normal_cdf(-a): relative error 4.5e-7 near 0, absolute error of gelu at
// most 6.8e-8, and relative error 6.8e-5 far out. Beyond 5, where |gelu| is below 1.5e-6, the value
// at 5 is used.
constexpr float kGaussTailCoefficients[] = {1.4133179e-01f,  -4.561435e-02f,  1.3640702e-02f,
                                            -3.8373272e-03f, 1.0284524e-03f,  -2.4598293e-04f,
                                            5.8305763e-05f,  -2.0489892e-05f, 3.534669e-06f,
                                            5.3535047e-07f,  2.169007e-07f,   -1.2847738e-07f};
constexpr float kGaussTailCentre = 2.5f;
constexpr float kGaussTailEnd = 5.0f;

// exp(t) = 2^n * exp(t - n * ln 2). ln 2 is split in two (Cody and Waite). Below kExpMin the
// result would leave the normal numbers.
constexpr float kExpMin = -87.0f;
constexpr float kLn2High = 0.693147182f;
constexpr float kLn2Low = -1.90465421e-9f;

// Below this |gelu(x)| is under 1e-36. The clamp keeps -infinity finite.
constexpr float kGeluMin = -13.0f;

}  // namespace
}  // namespace tfq::cpu
