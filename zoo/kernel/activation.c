/* Activations of 16 float32 numbers at a time, for the other sources of this folder. */
#include <immintrin.h>

/* in the order of `IN_C` in activation.py */
enum { IDENTITY, RELU, GELU, GELU_TANH, QUICK_GELU, SILU };

static inline __m512 all(float value) { return _mm512_set1_ps(value); }

/* e^x, by the whole and the broken part of x / ln 2; relative error 2e-7. Infinite above 88.8. */
static inline __m512 exponential(__m512 x) {
    x = _mm512_max_ps(all(-110), _mm512_min_ps(all(100), x));  /* in this order what is not a number stays so */
    const __m512 whole = _mm512_roundscale_ps(_mm512_mul_ps(x, all(1.44269504f)), 0);
    x = _mm512_fnmadd_ps(whole, all(0.693359375f), x);
    x = _mm512_fnmadd_ps(whole, all(-2.12194440e-4f), x);
    __m512 sum = all(1.f / 5040);
    sum = _mm512_fmadd_ps(sum, x, all(1.f / 720));
    sum = _mm512_fmadd_ps(sum, x, all(1.f / 120));
    sum = _mm512_fmadd_ps(sum, x, all(1.f / 24));
    sum = _mm512_fmadd_ps(sum, x, all(1.f / 6));
    sum = _mm512_fmadd_ps(sum, x, all(.5f));
    sum = _mm512_fmadd_ps(sum, x, all(1));
    sum = _mm512_fmadd_ps(sum, x, all(1));
    return _mm512_scalef_ps(sum, whole);
}

static inline __m512 logistic(__m512 x) {
    return _mm512_div_ps(all(1), _mm512_add_ps(all(1), exponential(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

/* The share of the normal distribution below x: one minus erf by Press et al., Numerical Recipes, section 6.2, whose relative
 * error is 1.2e-7. */
static inline __m512 below(__m512 x) {
    static const float terms[] = {0.17087277f, -0.82215223f, 1.48851587f, -1.13520398f, 0.27886807f, -0.18628806f, 0.09678418f,
                                  0.37409196f, 1.00002368f, -1.26551223f};
    const __m512 z = _mm512_mul_ps(_mm512_abs_ps(x), all(0.70710678f));
    const __m512 t = _mm512_div_ps(all(1), _mm512_fmadd_ps(z, all(.5f), all(1)));
    __m512 sum = all(terms[0]);
    for (int n = 1; n < 10; n++) sum = _mm512_fmadd_ps(sum, t, all(terms[n]));
    const __m512 beyond = _mm512_mul_ps(all(.5f), _mm512_mul_ps(t, exponential(_mm512_fnmadd_ps(z, z, sum))));
    const __mmask16 above = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ);
    return _mm512_mask_sub_ps(beyond, above, all(1), beyond);
}

/* What most activations multiply x by: a share of it, between nothing and all. */
static inline __m512 kept(__m512 x, long activation) {
    switch (activation) {
        case GELU: return below(x);
        case GELU_TANH: {
            const __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
            return logistic(_mm512_mul_ps(all(1.59576912f), _mm512_fmadd_ps(cube, all(0.044715f), x)));
        }
        case QUICK_GELU: return logistic(_mm512_mul_ps(all(1.702f), x));
        case SILU: return logistic(x);
        default: return all(1);
    }
}

static inline __m512 activated(__m512 x, long activation) {
    return activation == RELU ? _mm512_max_ps(_mm512_setzero_ps(), x) : _mm512_mul_ps(x, kept(x, activation));
}

/* The same, and its derivative. */
static inline __m512 activated_with_slope(__m512 x, long activation, __m512 *slope) {
    if (activation == RELU) {
        const __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LE_OQ);
        *slope = _mm512_mask_mov_ps(all(1), negative, _mm512_setzero_ps());
        return _mm512_max_ps(_mm512_setzero_ps(), x);
    }
    const __m512 share = kept(x, activation), value = _mm512_mul_ps(x, share);
    const __m512 remaining = _mm512_mul_ps(value, _mm512_sub_ps(all(1), share));  /* of a logistic share: x times its slope */
    switch (activation) {
        case GELU: {
            const __m512 density = exponential(_mm512_mul_ps(all(-.5f), _mm512_mul_ps(x, x)));
            *slope = _mm512_fmadd_ps(_mm512_mul_ps(all(0.39894228f), density), x, share);
            break;
        }
        case GELU_TANH: {
            const __m512 inner = _mm512_fmadd_ps(_mm512_mul_ps(x, x), all(1.59576912f * 3 * 0.044715f), all(1.59576912f));
            *slope = _mm512_fmadd_ps(remaining, inner, share);
            break;
        }
        case QUICK_GELU: *slope = _mm512_fmadd_ps(remaining, all(1.702f), share); break;
        case SILU: *slope = _mm512_add_ps(remaining, share); break;
        default: *slope = all(1);
    }
    return value;
}
