/* The backward pass of adding up what a token's experts give. See experts_learned.py. */

/* From the gradient of each token, (tokens, width), those of rows, (tokens x choices, width), which lie at `place`, and of the
 * weights that they were multiplied by, (tokens, choices). */
void zoo_mixed_back(long tokens, long choices, long width, const float *gradient, const float *rows, const long *place,
                    const float *weights, float *of_rows, float *of_weights, int threads) {
    #pragma omp parallel for num_threads(threads) schedule(static)
    for (long n = 0; n < tokens * choices; n++) {
        const float *own = gradient + n / choices * width, *row = rows + place[n] * width, weight = weights[n];
        float *to = of_rows + place[n] * width, sum = 0;
        #pragma omp simd reduction(+ : sum)
        for (long k = 0; k < width; k++) {
            sum += own[k] * row[k];
            to[k] = own[k] * weight;
        }
        of_weights[n] = sum;
    }
}
