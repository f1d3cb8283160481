// Attention over ragged lengths: keys and values are read where they are cached, and nothing is padded.
//
// A query meets its keys a tile at a time, with the running maximum and sum of an online softmax (arXiv 1805.02867,
// algorithm 3). Tiles begin at multiples of kTile, whatever the query, so that a row comes out the same in any company
// and in prefill as in decode.

#include "counts.h"
#include "elementary.h"
#include "glue.h"
#include "shuffles.h"

namespace {

constexpr long kTile = 64;           // tokens
constexpr long kKeyTile = 16;        // tokens whose keys are cached by channel: (head_dim, kKeyTile)
constexpr long kMaxHeadDim = 256;    // as decoder.py says
constexpr long kMaxQueries = 192;    // of one kv head, that a thread takes at a time; no fewer than heads may share it
constexpr int kQueries = kLanes == 16 ? 6 : 4, kVectors = kLanes == 16 ? 4 : 2;  // multiplied at once, in registers
constexpr float kInfinity = __builtin_inff();

constexpr long larger(long a, long b) { return a > b ? a : b; }

INLINE float largest(Floats v) {
  for (int width = kLanes / 2; width; width /= 2) {
    const Floats other = __builtin_shuffle(v, lane_numbers() ^ width);
    v = v > other ? v : other;
  }
  return v[0];
}

// Keys by channel and values by token, in whole vectors, where they are cached if they are so there.
struct Tile {
  long first, num_tokens;
  const float *keys[kTile / kKeyTile];  // each (head_dim, kKeyTile); those behind the last token are any
  const float *values;                  // (num_tokens, value_stride)
  const float *next_keys;               // what will be read after this tile
  bool is_fetching;                     // whether values and next keys are on their way already
  long value_stride;
  alignas(64) float padded_keys[kMaxHeadDim * kKeyTile];
  alignas(64) float padded_values[kTile * kMaxHeadDim];

  // Takes keys from a cache with room for max_tokens more, and values.
  void read(const float *from_keys, const float *from_values, long max_tokens, long head_dim) {
    const long num_whole = max_tokens / kKeyTile, width = max_tokens % kKeyTile;
    const long num_read = smaller(num_whole, (num_tokens + kKeyTile - 1) / kKeyTile);
    for (long i = 0; i < kTile / kKeyTile; i++)
      keys[i] = i < num_read ? from_keys + i * kKeyTile * head_dim : num_whole ? from_keys : padded_keys;
    if (num_whole * kKeyTile < num_tokens) {  // the last keys that there is room for
      for (long channel = 0; channel < head_dim; channel++)
        memcpy(padded_keys + channel * kKeyTile, from_keys + num_whole * kKeyTile * head_dim + channel * width,
               width * sizeof(float));
      keys[num_whole] = padded_keys;
    }
    value_stride = (head_dim + kLanes - 1) / kLanes * kLanes;
    values = value_stride == head_dim ? from_values : padded_values;
    if (values == padded_values)
      for (long token = 0; token < num_tokens; token++)
        for (long channel = 0; channel < head_dim; channel += kLanes)
          store(padded_values + token * value_stride + channel,
                load_some(from_values + token * head_dim + channel, head_dim - channel));
  }
};

struct Query {
  const float *channels;  // (head_dim), scaled
  float *y;               // (head_dim): sum of the values met so far, each times e^(score - largest)
  long position;
  float slope, largest, sum;
};

class Attention {
 public:
  explicit Attention(const AttentionOfRows &attention)
      : p(attention),
        sharing(p.num_heads / p.num_kv_heads),
        chunk_rows(larger(kMaxQueries / sharing, 1)),
        row_size((p.num_heads + 2 * p.num_kv_heads) * p.head_dim),
        slots(p.layout),
        starts(p.layout + p.num_sequences),
        counts(p.layout + 2 * p.num_sequences) {}

  void run() const {
    long num_items = 0;
    for (long sequence = 0; sequence < p.num_sequences; sequence++) num_items += num_chunks(sequence) * p.num_kv_heads;
    parallel_for(p.team, p.num_sequences, [&](long sequence) {
      long row = 0;
      for (long before = 0; before < sequence; before++) row += counts[before];
      for (long i = 0; i < counts[sequence]; i++) place(row + i, sequence, starts[sequence] + i);
    });
    parallel_for(p.team, num_items, [&](long item) {
      long sequence = 0, row = 0;
      for (; item >= num_chunks(sequence) * p.num_kv_heads; sequence++) {
        item -= num_chunks(sequence) * p.num_kv_heads;
        row += counts[sequence];
      }
      attend(row, sequence, item % p.num_kv_heads, item / p.num_kv_heads * chunk_rows);
    });
  }

 private:
  long num_chunks(long sequence) const { return (counts[sequence] + chunk_rows - 1) / chunk_rows; }

  // Where the cache has a kv head of a sequence from a position on, for keys the first one of a tile.
  long cached(long sequence, long kv_head, long position) const {
    return ((slots[sequence] * p.num_kv_heads + kv_head) * p.max_tokens + position) * p.head_dim;
  }

  // Makes the queries of a row ready, and puts its keys and values into the cache.
  void place(long row, long sequence, long position) const {
    float *head = p.projected + row * row_size;
    for (long i = 0; i < p.num_heads; i++, head += p.head_dim) {
      turn(head, row, p.query_norm);
      for (long channel = 0; channel < p.head_dim; channel++) head[channel] *= (float)p.scale;
    }
    for (long i = 0; i < p.num_kv_heads; i++, head += p.head_dim) {
      turn(head, row, p.key_norm);
      const long tile = position / kKeyTile * kKeyTile, width = smaller(kKeyTile, p.max_tokens - tile);
      float *key = p.keys + cached(sequence, i, tile) + position - tile;
      for (long channel = 0; channel < p.head_dim; channel++) key[channel * width] = head[channel];
    }
    for (long i = 0; i < p.num_kv_heads; i++, head += p.head_dim)
      memcpy(p.values + cached(sequence, i, position), head, p.head_dim * sizeof(float));
  }

  // Norms and rotates a head, where the model does so.
  void turn(float *head, long row, const float *norm_weight) const {
    if (p.has_head_norms) norm_row({norm_weight, nullptr, (float)p.eps, false}, head, head, p.head_dim);
    const long half = p.num_rotated / 2;
    const float *cosines = p.cosines + row * p.num_rotated, *sines = p.sines + row * p.num_rotated;
    for (long i = 0; i < half; i++) {
      const float first = head[i], second = head[half + i];
      head[i] = first * cosines[i] - second * sines[i];
      head[half + i] = second * cosines[half + i] + first * sines[half + i];
    }
  }

  // The queries of a kv head of up to chunk_rows rows, beginning `skipped` rows behind `row`, the first of a sequence.
  void attend(long row, long sequence, long kv_head, long skipped) const {
    const long num_rows = smaller(chunk_rows, counts[sequence] - skipped), num_queries = num_rows * sharing;
    const long begin = starts[sequence] + skipped, end = begin + num_rows;
    Query queries[kMaxQueries];
    for (long i = 0; i < num_queries; i++) {
      const long of_row = row + skipped + i / sharing, head = kv_head * sharing + i % sharing;
      float *y = p.y + (of_row * p.num_heads + head) * p.head_dim;
      memset(y, 0, p.head_dim * sizeof(float));
      const float *channels = p.projected + of_row * row_size + head * p.head_dim;
      queries[i] = {channels, y, begin + i / sharing, p.slopes ? p.slopes[head] : 0, -kInfinity, 0};
    }
    const long first_seen = p.window ? larger(begin + 1 - p.window, 0) : 0;
    Tile tile;
    for (tile.first = first_seen / kTile * kTile; tile.first < end; tile.first += kTile) {
      tile.num_tokens = smaller(kTile, end - tile.first);
      const long at = cached(sequence, kv_head, tile.first);
      tile.read(p.keys + at, p.values + at, p.max_tokens - tile.first, p.head_dim);
      tile.is_fetching = false;
      const bool is_last = tile.first + kTile >= end;  // then the next head's follow, or another slot's
      const long next = is_last ? cached(sequence, kv_head + 1, first_seen / kTile * kTile) : at + kTile * p.head_dim;
      tile.next_keys = p.keys + next;
      for (long i = 0; i < num_queries; i += kQueries) {
        const long size = smaller(kQueries, num_queries - i);
        if (queries[i + size - 1].position < tile.first) continue;
        with_count<kQueries>(size, [&](auto count) { meet<count>(queries + i, tile); });
        tile.is_fetching = true;
      }
    }
    for (long i = 0; i < num_queries; i++)
      for (long channel = 0; channel < p.head_dim; channel++) queries[i].y[channel] /= queries[i].sum;
  }

  // Adds a tile to what some queries have met.
  template <int kCount> void meet(Query *queries, const Tile &tile) const {
    alignas(64) float scores[kCount][kTile];
    float shrinkage[kCount];
    for (long token = 0; token < tile.num_tokens; token += kVectors * kLanes) score<kCount>(queries, tile, token, scores);
    for (int i = 0; i < kCount; i++) shrinkage[i] = weigh(queries[i], tile, scores[i]);
    long channel = 0;
    for (; channel + kVectors * kLanes <= tile.value_stride; channel += kVectors * kLanes)
      add_values<kCount, kVectors>(queries, tile, scores, shrinkage, channel);
    for (; channel < tile.value_stride; channel += kLanes)
      add_values<kCount, 1>(queries, tile, scores, shrinkage, channel);
  }

  // Products of queries with the keys from `token` on.
  template <int kCount>
  void score(const Query *queries, const Tile &tile, long token, float (&scores)[kCount][kTile]) const {
    Floats sums[kCount][kVectors] = {};
    for (long channel = 0; channel < p.head_dim; channel++) {
      Floats keys[kVectors];
      for (int v = 0; v < kVectors; v++) {
        const long at = token + v * kLanes;
        keys[v] = load<Floats>(tile.keys[at / kKeyTile] + channel * kKeyTile + at % kKeyTile);
      }
      // The values come from memory meanwhile, and the next keys while these values are added up.
      for (long line = 0; line < kTile / 16 && token == 0 && !tile.is_fetching; line++)
        __builtin_prefetch(tile.values + (channel * kTile / 16 + line) * 16);
#pragma GCC unroll 8
      for (int i = 0; i < kCount; i++) {
        const Floats query = broadcast(queries[i].channels[channel]);
        for (int v = 0; v < kVectors; v++) sums[i][v] = multiply_add(query, keys[v], sums[i][v]);
      }
    }
    for (int i = 0; i < kCount; i++)
      for (int v = 0; v < kVectors; v++) store(scores[i] + token + v * kLanes, sums[i][v]);
  }

  // Turns scores into weights, those of tokens that are not seen into zeros. What the query has met before is to be
  // multiplied with the number that is returned.
  float weigh(Query &query, const Tile &tile, float *scores) const {
    const long last = smaller(query.position - tile.first + 1, tile.num_tokens);
    const long first = p.window ? larger(query.position - p.window + 1 - tile.first, 0) : 0;
    const long num_numbers = (tile.num_tokens + kLanes - 1) / kLanes * kLanes;
    const auto is_seen = [&](long token) {
      const Ints tokens = lane_numbers() + (int)token;
      return (tokens >= (int)first) & (tokens < (int)last);
    };
    Floats largest_scores = broadcast(query.largest);
    for (long token = 0; token < num_numbers; token += kLanes) {
      Floats score = load<Floats>(scores + token);
      if (p.soft_cap) score = hyperbolic_tangent(score / (float)p.soft_cap) * (float)p.soft_cap;
      if (query.slope) {
        const Ints distances = lane_numbers() + (int)(tile.first + token - query.position);
        score += query.slope * __builtin_convertvector(distances, Floats);
      }
      store(scores + token, score);
      score = is_seen(token) ? score : broadcast(-kInfinity);
      largest_scores = score > largest_scores ? score : largest_scores;
    }
    const float before = query.largest;
    query.largest = largest(largest_scores);
    Floats sums{};
    for (long token = 0; token < num_numbers; token += kLanes) {
      const Floats weight = exponential(load<Floats>(scores + token) - query.largest);
      const Floats seen = is_seen(token) ? weight : Floats{};
      store(scores + token, seen);
      sums += seen;
    }
    const float shrinkage = before == query.largest ? 1 : exponential(broadcast(before - query.largest))[0];
    query.sum = query.sum * shrinkage + sum(sums);
    return shrinkage;
  }

  // Adds weighted values to kNumVectors vectors of channels.
  template <int kCount, int kNumVectors>
  void add_values(Query *queries, const Tile &tile, const float (&weights)[kCount][kTile], const float (&shrinkage)[kCount],
                  long channel) const {
    Floats sums[kCount][kNumVectors];
    for (int i = 0; i < kCount; i++)
      for (int v = 0; v < kNumVectors; v++)
        sums[i][v] = load_some(queries[i].y + channel + v * kLanes, p.head_dim - channel - v * kLanes) * shrinkage[i];
    for (long token = 0; token < tile.num_tokens; token++) {
      Floats values[kNumVectors];
      for (int v = 0; v < kNumVectors; v++)
        values[v] = load<Floats>(tile.values + token * tile.value_stride + channel + v * kLanes);
      for (long line = 0; line < p.head_dim / 16 && channel == 0 && !tile.is_fetching; line++)
        __builtin_prefetch(tile.next_keys + (token * p.head_dim / 16 + line) * 16);
#pragma GCC unroll 8
      for (int i = 0; i < kCount; i++) {
        const Floats weight = broadcast(weights[i][token]);
        for (int v = 0; v < kNumVectors; v++) sums[i][v] = multiply_add(weight, values[v], sums[i][v]);
      }
    }
    for (int i = 0; i < kCount; i++)
      for (int v = 0; v < kNumVectors; v++)
        store_some(queries[i].y + channel + v * kLanes, sums[i][v], p.head_dim - channel - v * kLanes);
  }

  const AttentionOfRows &p;
  const long sharing, chunk_rows, row_size;
  const int64_t *slots, *starts, *counts;
};

}  // namespace

LLMPQ_EXPORT(attend)(const AttentionOfRows *attention) { Attention(*attention).run(); }
