// What a CPU allows: minibatch Adam on a position-based model that touches the rows of the batch alone, one thread.
// gcc -O3 -march=native -ffast-math -shared -fPIC floor.c -o floor.so -lm
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

// A document's logit, its two Adam moments and the gradient of the current batch: 16 bytes, four rows per cache line.
typedef struct {
  float logit, mean, square, gradient;
} Row;

static const float BETA1 = .9f, BETA2 = .999f, EPSILON = 1e-8f;
static const int AHEAD = 32;  // ids between the prefetch of a row and its use

static inline float sigmoid(float x) { return 1.f / (1.f + expf(-x)); }

static inline void adam(Row *row, float rate, float correct1, float correct2) {
  const float g = row->gradient;
  row->gradient = 0;
  row->mean = BETA1 * row->mean + (1 - BETA1) * g;
  row->square = BETA2 * row->square + (1 - BETA2) * g * g;
  row->logit -= rate * (row->mean * correct1) / (sqrtf(row->square * correct2) + EPSILON);
}

// One epoch. documents: [V + 1], ranks: [K], ids and clicks: [N, K] with K <= 64; `steps` counts on between calls.
// Returns the mean negative log-likelihood per document as it was when each batch came.
double pbm_epoch(Row *documents, Row *ranks, const int32_t *ids, const int8_t *clicks, int64_t sessions, int k,
                 int64_t batch, float rate, int64_t *steps) {
  double total = 0;
  int64_t used = 0;
  for (int64_t start = 0; start + batch <= sessions; start += batch, used += batch) {
    float examination[64], log_gradient[64] = {0};
    for (int r = 0; r < k; r++) examination[r] = sigmoid(ranks[r].logit);
    const int32_t *id = ids + start * k;
    const int8_t *click = clicks + start * k;
    const int64_t cells = batch * k;
    const float scale = 1.f / cells;
    for (int64_t i = 0; i < cells; i += k) {
      float likelihood = 1;
      for (int r = 0; r < k; r++) {
        if (i + r + AHEAD < cells) __builtin_prefetch(&documents[id[i + r + AHEAD]], 1);
      }
      for (int r = 0; r < k; r++) {
        const float a = sigmoid(documents[id[i + r]].logit), p = a * examination[r];
        const int clicked = click[i + r];
        const float residual = clicked ? 1.f : -p / (1.f - p);  // d ln P / d ln p
        likelihood *= clicked ? p : 1.f - p;
        documents[id[i + r]].gradient -= residual * (1.f - a) * scale;
        log_gradient[r] -= residual * (1.f - examination[r]) * scale;
      }
      total -= logf(likelihood + 1e-30f);
    }
    ++*steps;
    const float correct1 = 1.f / (1.f - powf(BETA1, *steps)), correct2 = 1.f / (1.f - powf(BETA2, *steps));
    for (int64_t j = 0; j < cells; j++) {
      if (j + AHEAD < cells) __builtin_prefetch(&documents[id[j + AHEAD]], 1);
      if (documents[id[j]].gradient != 0.f) adam(&documents[id[j]], rate, correct1, correct2);
    }
    for (int r = 0; r < k; r++) {
      ranks[r].gradient = log_gradient[r];
      adam(&ranks[r], rate, correct1, correct2);
    }
  }
  return used ? total / ((double)used * k) : 0;
}

void copy(char *to, const char *from, int64_t bytes) { memcpy(to, from, bytes); }
