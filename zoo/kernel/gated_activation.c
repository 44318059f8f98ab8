/* activation(gate) * up of many numbers, and its backward pass. See gated_activation.py. */
#include "activation.c"

static inline __mmask16 first(long count) { return count >= 16 ? 0xffff : (1 << count) - 1; }

void zoo_gated_activation(long activation, long number, const float *gate, const float *up, float *hidden, int threads) {
    #pragma omp parallel for num_threads(threads) schedule(static)
    for (long n = 0; n < number; n += 16) {
        const __mmask16 some = first(number - n);
        const __m512 x = activated(_mm512_maskz_loadu_ps(some, gate + n), activation);
        _mm512_mask_storeu_ps(hidden + n, some, _mm512_mul_ps(x, _mm512_maskz_loadu_ps(some, up + n)));
    }
}

/* What came out of the above, and from its gradient (`back`) those of both factors. */
void zoo_gated_activation_back(long activation, long number, const float *gate, const float *up, const float *back, float *hidden,
                               float *of_gate, float *of_up, int threads) {
    #pragma omp parallel for num_threads(threads) schedule(static)
    for (long n = 0; n < number; n += 16) {
        const __mmask16 some = first(number - n);
        const __m512 factor = _mm512_maskz_loadu_ps(some, up + n), gradient = _mm512_maskz_loadu_ps(some, back + n);
        __m512 slope;
        const __m512 value = activated_with_slope(_mm512_maskz_loadu_ps(some, gate + n), activation, &slope);
        _mm512_mask_storeu_ps(hidden + n, some, _mm512_mul_ps(value, factor));
        _mm512_mask_storeu_ps(of_up + n, some, _mm512_mul_ps(value, gradient));
        _mm512_mask_storeu_ps(of_gate + n, some, _mm512_mul_ps(_mm512_mul_ps(gradient, factor), slope));
    }
}
