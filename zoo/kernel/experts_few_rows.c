/* Few tokens through the experts that were chosen for them, in one call. See experts_few_rows.py.
 *
 * The tokens' rows are sorted by expert. Then each thread computes its share of all experts' inner features, and when all are
 * there, its share of what all experts give; at last each token adds up what its own give.
 */
#include <omp.h>
#include <string.h>

#include "activation.c"
#include "few_rows.c"

/* A linear layer of all experts, whose panels lie one expert behind the other; there may be no bias. */
struct layer { const float *panels, *bias; long inputs, outputs; };

/* Numbers of a weight as they are, so far apart, and as they were when it was laid out. */
struct sample { const int *live, *kept; long apart, number; };

struct experts {
    long experts, choices, activation;
    struct layer up, down, gate; /* a gate without panels is none */
    long samples;
    struct sample sample[3];
};

enum { GROUP = STREAMS * WIDTH /* outputs */, TOGETHER = 64 /* rows, at most */ };
enum { FETCHED = 36 /* rows that take as long to multiply as their weights to be read */ };

static inline long groups(const struct layer *it) { return (it->outputs + GROUP - 1) / GROUP; }
static inline const float *panels(const struct layer *it, long expert, long group) {
    return it->panels + (expert * groups(it) + group) * GROUP * it->inputs;
}
static inline const float *bias(const struct layer *it, long expert, long group) {
    return it->bias ? it->bias + expert * it->outputs + group * GROUP : 0;
}

/* Whether a thread's share of the samples differs. */
static int changed(const struct experts *it, long thread, long threads) {
    int differing = 0;
    for (const struct sample *s = it->sample; s < it->sample + it->samples; s++)
        for (long n = s->number * thread / threads; n < s->number * (thread + 1) / threads; n++)
            differing |= s->live[n * s->apart] ^ s->kept[n];
    return differing != 0;
}

/* activation(gate) * up, or activation(up), for one group of an expert's features. */
static void inner(const struct experts *it, long expert, long group, long rows, const float *x, float *hidden) {
    const struct layer *up = &it->up, *gate = &it->gate, *before = gate->panels ? gate : up;
    const long inputs = up->inputs, wanted = least(GROUP, up->outputs - group * GROUP);
    const float *own = panels(before, expert, group), *next = panels(up, expert, group + 1);
    for (long start = 0; start < rows; start += TOGETHER, x += TOGETHER * inputs) {
        const long number = least(TOGETHER, rows - start);
        float *to = hidden + start * up->outputs + group * GROUP, other[TOGETHER * GROUP];
        if (gate->panels)
            all_rows(number, inputs, wanted, x, inputs, panels(up, expert, group), bias(up, expert, group), other, GROUP, own);
        all_rows(number, inputs, wanted, x, inputs, own, bias(before, expert, group), to, up->outputs, next);
        for (long r = 0; r < number; r++, to += up->outputs)
            for (long n = 0; n < wanted; n += WIDTH) {
                const __mmask16 some = first(wanted - n);
                __m512 value = activated(_mm512_maskz_loadu_ps(some, to + n), it->activation);
                if (gate->panels) value = _mm512_mul_ps(value, _mm512_maskz_loadu_ps(some, other + r * GROUP + n));
                _mm512_mask_storeu_ps(to + n, some, value);
            }
    }
}

static void outer(const struct experts *it, long expert, long group, long rows, const float *hidden, float *found) {
    const struct layer *down = &it->down;
    all_rows(rows, down->inputs, down->outputs - group * GROUP, hidden, down->inputs, panels(down, expert, group),
             bias(down, expert, group), found + group * GROUP, down->outputs, panels(down, expert, group + 1));
}

/* A thread's share of a step of all experts: `in` and `out` are of all rows, of which an expert's begin at `starts`. */
static void share(const struct experts *it, const struct layer *layer,
                  void (*step)(const struct experts *, long, long, long, const float *, float *), const long *starts,
                  const float *in, float *out, long thread, long threads) {
    const long *ends = starts + 1, all = groups(layer);
    long work = 0, before = 0;
    for (long e = 0; e < it->experts; e++) work += ends[e] > starts[e] ? all * (FETCHED + ends[e] - starts[e]) : 0;
    const long from = work * thread / threads, until = work * (thread + 1) / threads;
    for (long e = 0; e < it->experts; e++) {
        const long rows = ends[e] - starts[e];
        for (long group = 0; rows && group < all; group++, before += FETCHED + rows)
            if (before >= from && before < until)
                step(it, e, group, rows, in + starts[e] * layer->inputs, out + starts[e] * layer->outputs);
    }
}

/* (tokens, inputs) -> (tokens, outputs). Returns whether a weight has changed, and then nothing is computed.
 *
 * chosen: (tokens, choices), of which `experts` stands for none. weights: the same, what is multiplied by.
 * space: for each choice of each token the inputs, the inner features and the outputs.
 */
int zoo_experts_few_rows(const struct experts *it, long tokens, const float *x, long x_stride, const long *chosen,
                         const float *weights, float *y, float *space, int threads) {
    const long choices = it->choices, all_choices = tokens * choices, inputs = it->up.inputs, outputs = it->down.outputs;
    float *rows = space, *hidden = rows + all_choices * inputs, *found = hidden + all_choices * it->up.outputs;
    long starts[it->experts + 2], next[it->experts + 1], place[all_choices];
    memset(starts, 0, sizeof starts);
    for (long n = 0; n < all_choices; n++) starts[chosen[n] + 1]++;
    for (long e = 0; e <= it->experts; e++) starts[e + 1] += next[e] = starts[e];
    for (long n = 0; n < all_choices; n++) place[n] = next[chosen[n]]++;
    int stale = 0;
    #pragma omp parallel num_threads(threads)
    {
        const long thread = omp_get_thread_num(), team = omp_get_num_threads();
        if (changed(it, thread, team)) {
            #pragma omp atomic write
            stale = 1;
        }
        #pragma omp for schedule(static)
        for (long n = 0; n < all_choices; n++)
            memcpy(rows + place[n] * inputs, x + n / choices * x_stride, inputs * sizeof *x);
        if (!stale) {
            share(it, &it->up, inner, starts, rows, hidden, thread, team);
            #pragma omp barrier
            share(it, &it->down, outer, starts, hidden, found, thread, team);
            #pragma omp barrier
            #pragma omp for schedule(static)
            for (long t = 0; t < tokens; t++)
                for (long c = 0; c < choices; c++) {
                    const float weight = weights[t * choices + c];
                    const float *from = chosen[t * choices + c] < it->experts ? found + place[t * choices + c] * outputs : 0;
                    for (long n = 0; n < outputs; n++)
                        y[t * outputs + n] = (c ? y[t * outputs + n] : 0) + weight * (from ? from[n] : 0);
                }
        }
    }
    return stale;
}
