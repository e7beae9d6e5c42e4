/* Sums over neighbours of radial weight x (features coupled with harmonics); no message is stored.
 *
 *     out_i[p, m3, c] = sum_j w_p(r_ij)_c sum_m1 b_p(r_ij)[m3, m1] h_j[m1, c]
 *     w(r_ij) = radial(r_ij) @ weights,     b_p[m3, m1] = sum_m2 C_p[m2, m3, m1] Y(r_ij)[m2]
 *
 * for all paths p = (l1, l2, l3), with its first and second derivatives. The form is linear in each
 * of h, Y, radial and weights, which is what makes both short: the gradient is the same form with
 * one factor left out, and the gradient of that the same with two.
 *
 * neighbor_sum.py writes in front of this file: FUNCTION (which of the three to compile), `real`,
 * RADIAL, WEIGHTS, HARMONICS (numbers per edge), FEATURES, OUT (per atom); FOR_EACH_TABLE(DO) over
 * the tables C, with table##_terms(TERM) for what is not zero in each; and FOR_EACH_PATH(DO), which
 * expands
 * DO(table, d1, d2, d3, channels, at_h, at_y, at_w, at_out, stride) with constants (d = 2l+1), so
 * that every loop below has a length the compiler knows. Outputs lie one after another in memory,
 * each (atoms, size); FOR_EACH_OUTPUT(DO) expands DO(at, size) for what is one atom's.
 * Edges are sorted by centre: those of atom i are first[i] .. first[i + 1]. The functions work on a
 * range of centres, for threads; what is scattered to neighbours goes to an array of their own.
 */
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#define LANES (64 / (int)sizeof(real))
#define TILE 4 /* edges whose radial weights are computed together: `weights` is read once */

#define PER_EDGE (RADIAL ? RADIAL : WEIGHTS) /* without weights, `radial` is what they would give */

/* w[t] = radial[t] @ weights */
INLINE void radial_weights(int edges, const real *radial, const real *weights, real (*w)[WEIGHTS]) {
    if (!RADIAL) {
        memcpy(w, radial, edges * sizeof *w);
        return;
    }
    if (edges == TILE) {
        for (int c = 0; c < WEIGHTS; c++) {
            real sum[TILE] = {0};
            UNROLL for (int k = 0; k < RADIAL; k++)
                UNROLL for (int t = 0; t < TILE; t++)
                    sum[t] += radial[t * RADIAL + k] * weights[k * WEIGHTS + c];
            UNROLL for (int t = 0; t < TILE; t++) w[t][c] = sum[t];
        }
        return;
    }
    for (int t = 0; t < edges; t++)
        for (int c = 0; c < WEIGHTS; c++) {
            real sum = 0;
            UNROLL for (int k = 0; k < RADIAL; k++)
                sum += radial[t * RADIAL + k] * weights[k * WEIGHTS + c];
            w[t][c] = sum;
        }
}

/* d_radial[t] = weights @ d_w[t] */
INLINE void radial_gradient(int edges, const real *weights, real (*d_w)[WEIGHTS], real *d_radial) {
    if (!RADIAL) {
        memcpy(d_radial, d_w, edges * sizeof *d_w);
        return;
    }
    for (int t = 0; t < edges; t++)
        for (int k = 0; k < RADIAL; k++) {
            real sum = 0;
            for (int c = 0; c < WEIGHTS; c++) sum += d_w[t][c] * weights[k * WEIGHTS + c];
            d_radial[t * RADIAL + k] = sum;
        }
}

/* d_weights += sum_t radial[t] d_w[t] */
INLINE void weights_gradient(int edges, const real *radial, real (*d_w)[WEIGHTS], real *d_weights) {
    for (int t = edges; t < TILE; t++) memset(d_w[t], 0, sizeof *d_w);
    for (int k = 0; k < RADIAL; k++) {
        real r[TILE] = {0};
        for (int t = 0; t < edges; t++) r[t] = radial[t * RADIAL + k];
        for (int c = 0; c < WEIGHTS; c++) {
            real sum = 0;
            UNROLL for (int t = 0; t < TILE; t++) sum += r[t] * d_w[t][c];
            d_weights[k * WEIGHTS + c] += sum;
        }
    }
}

/* b = Y @ C */
INLINE void couple(int d1, int d2, int d3, const real *y, const real *table, real *b) {
    for (int s = 0; s < d3 * d1; s++) {
        real sum = 0;
        UNROLL for (int m2 = 0; m2 < d2; m2++) sum += y[m2] * table[m2 * d3 * d1 + s];
        b[s] = sum;
    }
}

/* lanes[m2] += sum_(m1, m3) C[m2, m3, m1] g[m3] x[m1], channels beside one another in LANES lanes:
 * summing over channels for every (m1, m3) would cost more than all the rest. Only what is not zero
 * in C is written out. */
#define TERM(m1, m2, m3, value)                                                         \
    lanes[m2][c] += (real)(value) * g[m3 * stride + c] * x[m1 * channels + c];
#define HARMONICS_LANES(table)                                                          \
    INLINE void table##_lanes(int width, int channels, int stride, const real *g,       \
                              const real *x, real (*lanes)[LANES]) {                    \
        _Pragma("GCC ivdep") for (int c = 0; c < width; c++) { table##_terms(TERM) }    \
    }
FOR_EACH_TABLE(HARMONICS_LANES)

#define ADD_TO_LANES(table, channels, stride, g, x, lanes)                              \
    {                                                                                   \
        for (int c0 = 0; c0 + LANES <= channels; c0 += LANES)                           \
            table##_lanes(LANES, channels, stride, g + c0, x + c0, lanes);              \
        if (channels % LANES)                                                           \
            table##_lanes(channels % LANES, channels, stride, g + channels / LANES * LANES, \
                          x + channels / LANES * LANES, lanes);                         \
    }

INLINE void sum_lanes(real (*lanes)[LANES], real *d_y) {
    for (int m = 0; m < HARMONICS; m++) {
        real sum = 0;
        for (int c = 0; c < LANES; c++) sum += lanes[m][c];
        d_y[m] = sum;
    }
}

/* out[m3] += sum_m1 b[m3, m1] x[m1] */
INLINE void add_product(int d1, int d3, int channels, int stride, const real *b, const real *x,
                        real *out) {
    for (int m3 = 0; m3 < d3; m3++)
        for (int c = 0; c < channels; c++) {
            real sum = out[m3 * stride + c];
            UNROLL for (int m1 = 0; m1 < d1; m1++) sum += b[m3 * d1 + m1] * x[m1 * channels + c];
            out[m3 * stride + c] = sum;
        }
}

/* t[m1] = sum_m3 b[m3, m1] g[m3] */
INLINE void transposed(int d1, int d3, int channels, int stride, const real *b, const real *g,
                       real *t) {
    for (int m1 = 0; m1 < d1; m1++)
        for (int c = 0; c < channels; c++) {
            real sum = 0;
            UNROLL for (int m3 = 0; m3 < d3; m3++) sum += b[m3 * d1 + m1] * g[m3 * stride + c];
            t[m1 * channels + c] = sum;
        }
}

#define FETCH(at, size) memcpy(gi + at, g + at * atoms + i * size, size * sizeof(real));

#if FUNCTION == 0
/* out of the centres begin .. end */
void forward(int64_t atoms, int64_t begin, int64_t end, const int64_t *first, const int64_t *source,
             const real *h, const real *harmonics, const real *radial, const real *weights,
             real *out) {
    real w[TILE][WEIGHTS], sum[OUT];
    for (int64_t i = begin; i < end; i++) {
        memset(sum, 0, sizeof sum);
        for (int64_t e0 = first[i]; e0 < first[i + 1]; e0 += TILE) {
            const int edges = first[i + 1] - e0 < TILE ? (int)(first[i + 1] - e0) : TILE;
            radial_weights(edges, radial + e0 * PER_EDGE, weights, w);
            for (int t = 0; t < edges; t++) {
                const real *hj = h + source[e0 + t] * FEATURES;
                const real *y = harmonics + (e0 + t) * HARMONICS;
#define DO(table, d1, d2, d3, channels, at_h, at_y, at_w, at_out, stride)               \
    {                                                                                   \
        real b[d3 * d1], x[d1 * channels];                                              \
        couple(d1, d2, d3, y + at_y, table, b);                                         \
        for (int m1 = 0; m1 < d1; m1++)                                                 \
            for (int c = 0; c < channels; c++)                                          \
                x[m1 * channels + c] = w[t][at_w + c] * hj[at_h + m1 * channels + c];   \
        add_product(d1, d3, channels, stride, b, x, sum + at_out);                      \
    }
                FOR_EACH_PATH(DO)
#undef DO
            }
        }
#define STORE(at, size) memcpy(out + at * atoms + i * size, sum + at, size * sizeof(real));
        FOR_EACH_OUTPUT(STORE)
    }
}

#elif FUNCTION == 1
/* Gradients of <g, out>. d_h (all atoms) is added to; d_weights as well unless it is NULL. */
void backward(int64_t atoms, int64_t begin, int64_t end, const int64_t *first,
              const int64_t *source, const real *h, const real *harmonics, const real *radial,
              const real *weights, const real *g, real *d_h, real *d_harmonics, real *d_radial,
              real *d_weights) {
    real w[TILE][WEIGHTS], d_w[TILE][WEIGHTS], gi[OUT];
    for (int64_t i = begin; i < end; i++) {
        FOR_EACH_OUTPUT(FETCH)
        for (int64_t e0 = first[i]; e0 < first[i + 1]; e0 += TILE) {
            const int edges = first[i + 1] - e0 < TILE ? (int)(first[i + 1] - e0) : TILE;
            radial_weights(edges, radial + e0 * PER_EDGE, weights, w);
            for (int t = 0; t < edges; t++) {
                const int64_t e = e0 + t;
                const real *hj = h + source[e] * FEATURES, *y = harmonics + e * HARMONICS;
                real *d_hj = d_h + source[e] * FEATURES, lanes[HARMONICS][LANES] = {{0}};
#define DO(table, d1, d2, d3, channels, at_h, at_y, at_w, at_out, stride)               \
    {                                                                                   \
        real b[d3 * d1], x[d1 * channels], s[d1 * channels];                            \
        couple(d1, d2, d3, y + at_y, table, b);                                         \
        transposed(d1, d3, channels, stride, b, gi + at_out, s);                        \
        for (int c = 0; c < channels; c++) {                                            \
            const real wc = w[t][at_w + c];                                             \
            real sum = 0;                                                               \
            UNROLL for (int m1 = 0; m1 < d1; m1++) {                                    \
                const real hc = hj[at_h + m1 * channels + c], sc = s[m1 * channels + c]; \
                sum += hc * sc;                                                         \
                x[m1 * channels + c] = wc * hc;                                         \
                d_hj[at_h + m1 * channels + c] += wc * sc;                              \
            }                                                                           \
            d_w[t][at_w + c] = sum;                                                     \
        }                                                                               \
        ADD_TO_LANES(table, channels, stride, (gi + at_out), x, (lanes + at_y))         \
    }
                FOR_EACH_PATH(DO)
#undef DO
                sum_lanes(lanes, d_harmonics + e * HARMONICS);
            }
            radial_gradient(edges, weights, d_w, d_radial + e0 * PER_EDGE);
            if (d_weights) weights_gradient(edges, radial + e0 * PER_EDGE, d_w, d_weights);
        }
    }
}

#else
/* Gradients of <u_h, d_h> + <u_harmonics, d_harmonics> + <u_radial, d_radial>, where the d_ are
 * what `backward` gives: with respect to g (v_g), h (v_h, added to), harmonics, radial and weights
 * (v_weights, added to). */
void backward_twice(int64_t atoms, int64_t begin, int64_t end, const int64_t *first,
                    const int64_t *source, const real *h, const real *harmonics,
                    const real *radial, const real *weights, const real *g, const real *u_h,
                    const real *u_harmonics, const real *u_radial, real *v_g, real *v_h,
                    real *v_harmonics, real *v_radial, real *v_weights) {
    real w[TILE][WEIGHTS], u_w[TILE][WEIGHTS], v_w[TILE][WEIGHTS], v_uw[TILE][WEIGHTS];
    real sum[OUT], gi[OUT];
    for (int64_t i = begin; i < end; i++) {
        FOR_EACH_OUTPUT(FETCH)
        memset(sum, 0, sizeof sum);
        for (int64_t e0 = first[i]; e0 < first[i + 1]; e0 += TILE) {
            const int edges = first[i + 1] - e0 < TILE ? (int)(first[i + 1] - e0) : TILE;
            radial_weights(edges, radial + e0 * PER_EDGE, weights, w);
            radial_weights(edges, u_radial + e0 * PER_EDGE, weights, u_w);
            for (int t = 0; t < edges; t++) {
                const int64_t e = e0 + t;
                const real *hj = h + source[e] * FEATURES, *y = harmonics + e * HARMONICS;
                const real *u_hj = u_h + source[e] * FEATURES, *u_y = u_harmonics + e * HARMONICS;
                real *v_hj = v_h + source[e] * FEATURES, lanes[HARMONICS][LANES] = {{0}};
#define DO(table, d1, d2, d3, channels, at_h, at_y, at_w, at_out, stride)               \
    {                                                                                   \
        real b[d3 * d1], u_b[d3 * d1];                                                  \
        real x[d1 * channels], u_x[d1 * channels], s[d1 * channels], u_s[d1 * channels]; \
        couple(d1, d2, d3, y + at_y, table, b);                                         \
        couple(d1, d2, d3, u_y + at_y, table, u_b);                                     \
        transposed(d1, d3, channels, stride, b, gi + at_out, s);                        \
        transposed(d1, d3, channels, stride, u_b, gi + at_out, u_s);                    \
        for (int c = 0; c < channels; c++) {                                            \
            const real wc = w[t][at_w + c], u_wc = u_w[t][at_w + c];                    \
            real over_w = 0, over_uw = 0;                                               \
            UNROLL for (int m1 = 0; m1 < d1; m1++) {                                    \
                const real hc = hj[at_h + m1 * channels + c], sc = s[m1 * channels + c]; \
                const real u_hc = u_hj[at_h + m1 * channels + c], u_sc = u_s[m1 * channels + c]; \
                over_w += u_hc * sc + hc * u_sc;                                        \
                over_uw += hc * sc;                                                     \
                x[m1 * channels + c] = wc * hc;                                         \
                u_x[m1 * channels + c] = wc * u_hc + u_wc * hc;                         \
                v_hj[at_h + m1 * channels + c] += wc * u_sc + u_wc * sc;                \
            }                                                                           \
            v_w[t][at_w + c] = over_w;                                                  \
            v_uw[t][at_w + c] = over_uw;                                                \
        }                                                                               \
        add_product(d1, d3, channels, stride, b, u_x, sum + at_out);                    \
        add_product(d1, d3, channels, stride, u_b, x, sum + at_out);                    \
        ADD_TO_LANES(table, channels, stride, (gi + at_out), u_x, (lanes + at_y))       \
    }
                FOR_EACH_PATH(DO)
#undef DO
                sum_lanes(lanes, v_harmonics + e * HARMONICS);
            }
            radial_gradient(edges, weights, v_w, v_radial + e0 * PER_EDGE);
            weights_gradient(edges, radial + e0 * PER_EDGE, v_w, v_weights);
            weights_gradient(edges, u_radial + e0 * PER_EDGE, v_uw, v_weights);
        }
#define STORE(at, size) memcpy(v_g + at * atoms + i * size, sum + at, size * sizeof(real));
        FOR_EACH_OUTPUT(STORE)
    }
}
#endif
