/* Activations of 16 float32 numbers at a time, for the other sources of this folder. */
#include <immintrin.h>

/* in the order of `IN_C` in activation.py */
enum { IDENTITY, RELU, GELU, GELU_TANH, QUICK_GELU, SILU };

static inline __m512 all(float value) { return _mm512_set1_ps(value); }

/* e^x, by the whole and the broken part of x / ln 2; relative error 2e-7. */
static inline __m512 exponential(__m512 x) {
    x = _mm512_max_ps(all(-110), _mm512_min_ps(all(88.7f), x));  /* in this order what is not a number stays so */
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

/* x times the share of the normal distribution below it: one minus erf by Press et al., Numerical Recipes, section 6.2, whose
 * relative error is 1.2e-7. */
static inline __m512 gelu(__m512 x) {
    static const float terms[] = {0.17087277f, -0.82215223f, 1.48851587f, -1.13520398f, 0.27886807f, -0.18628806f, 0.09678418f,
                                  0.37409196f, 1.00002368f, -1.26551223f};
    const __m512 z = _mm512_mul_ps(_mm512_abs_ps(x), all(0.70710678f));
    const __m512 t = _mm512_div_ps(all(1), _mm512_fmadd_ps(z, all(.5f), all(1)));
    __m512 sum = all(terms[0]);
    for (int n = 1; n < 10; n++) sum = _mm512_fmadd_ps(sum, t, all(terms[n]));
    const __m512 beyond = _mm512_mul_ps(all(.5f), _mm512_mul_ps(t, exponential(_mm512_fnmadd_ps(z, z, sum))));
    const __mmask16 above = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ);
    return _mm512_mul_ps(x, _mm512_mask_sub_ps(beyond, above, all(1), beyond));
}

static inline __m512 activated(__m512 x, long activation) {
    switch (activation) {
        case RELU: return _mm512_max_ps(_mm512_setzero_ps(), x);
        case GELU: return gelu(x);
        case GELU_TANH: {
            const __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
            return _mm512_mul_ps(x, logistic(_mm512_mul_ps(all(1.59576912f), _mm512_fmadd_ps(cube, all(0.044715f), x))));
        }
        case QUICK_GELU: return _mm512_mul_ps(x, logistic(_mm512_mul_ps(all(1.702f), x)));
        case SILU: return _mm512_mul_ps(x, logistic(x));
        default: return x;
    }
}
