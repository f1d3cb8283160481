// Attention over ragged lengths: keys and values are read where they are cached, and nothing is padded.
//
// A query meets its keys a tile at a time, with the running maximum and sum of an online softmax (arXiv 1805.02867,
// algorithm 3). Tiles begin at multiples of kTile, whatever the query, so that a row comes out the same in any company
// and in prefill as in decode.
//
// Keys and values may be cached as int8 with a scale a token. Scores and weights are then multiplied with the scales, and
// codes are made floats in registers for few queries, once a tile for many.

#include "activations.h"
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
constexpr long in_vectors(long size) { return (size + kLanes - 1) / kLanes * kLanes; }

INLINE float largest(Floats v) {
  for (int width = kLanes / 2; width; width /= 2) {
    const Floats other = __builtin_shuffle(v, lane_numbers() ^ width);
    v = v > other ? v : other;
  }
  return v[0];
}

// The cache of a kv head of a slot from a token on, the first one of a tile.
template <class Number> struct Cached {
  Number *keys, *values;
  float *key_scales, *value_scales;  // of int8
};

// Keys by channel and values by token, in whole vectors, where they are cached if they are so there.
template <class Number> struct Tile {
  long first, num_tokens;
  const Number *keys[kTile / kKeyTile];  // each (head_dim, kKeyTile); those behind the last token are any
  const Number *values;                  // (num_tokens, value_stride)
  const float *key_scales, *value_scales;  // null of floats
  const Number *next_keys;                 // what will be read after this tile
  bool is_fetching;                        // whether values and next keys are on their way already
  long value_stride;
  alignas(64) Number padded_keys[kMaxHeadDim * kKeyTile];
  alignas(64) Number padded_values[kTile * kMaxHeadDim];

  // Takes keys from a cache with room for max_tokens more, and values.
  void read(const Cached<Number> &from, long max_tokens, long head_dim) {
    const long num_whole = max_tokens / kKeyTile, width = max_tokens % kKeyTile;
    const long num_read = smaller(num_whole, (num_tokens + kKeyTile - 1) / kKeyTile);
    for (long i = 0; i < kTile / kKeyTile; i++)
      keys[i] = i < num_read ? from.keys + i * kKeyTile * head_dim : num_whole ? from.keys : padded_keys;
    if (num_whole * kKeyTile < num_tokens) {  // the last keys that there is room for
      for (long channel = 0; channel < head_dim; channel++)
        memcpy(padded_keys + channel * kKeyTile, from.keys + num_whole * kKeyTile * head_dim + channel * width,
               width * sizeof(Number));
      keys[num_whole] = padded_keys;
    }
    value_stride = in_vectors(head_dim);
    values = value_stride == head_dim ? from.values : padded_values;
    if (values == padded_values)
      for (long token = 0; token < num_tokens; token++)
        memcpy(padded_values + token * value_stride, from.values + token * head_dim, head_dim * sizeof(Number));
    key_scales = from.key_scales;
    value_scales = from.value_scales;
  }
};

INLINE Floats numbers(const float *from) { return load<Floats>(from); }
INLINE Floats numbers(const int8_t *from) { return __builtin_convertvector(widen(from), Floats); }

// A tile of codes as floats, which are still to be multiplied with the scales.
struct DecodedTile : Tile<float> {
  alignas(64) float decoded_keys[kTile * kMaxHeadDim], decoded_values[kTile * kMaxHeadDim];

  void read(const Tile<int8_t> &coded, long head_dim) {
    first = coded.first, num_tokens = coded.num_tokens, value_stride = coded.value_stride;
    key_scales = coded.key_scales, value_scales = coded.value_scales, is_fetching = true;
    for (long i = 0; i < kTile / kKeyTile; i++) {
      keys[i] = decoded_keys + i * kKeyTile * head_dim;
      decode(coded.keys[i], kKeyTile * head_dim, decoded_keys + i * kKeyTile * head_dim);
    }
    values = decoded_values;
    decode(coded.values, num_tokens * value_stride, decoded_values);
  }

 private:
  static void decode(const int8_t *codes, long size, float *to) {
    for (long i = 0; i < size; i += kLanes) store(to + i, numbers(codes + i));
  }
};

template <class Number> constexpr long kLine = 64 / sizeof(Number);  // numbers that come from memory together

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

  void run() const { p.key_scales ? run<int8_t>() : run<float>(); }

 private:
  template <class Number> void run() const {
    long num_items = 0;
    for (long sequence = 0; sequence < p.num_sequences; sequence++) num_items += num_chunks(sequence) * p.num_kv_heads;
    parallel_for(p.team, p.num_sequences, [&](long sequence) {
      long row = 0;
      for (long before = 0; before < sequence; before++) row += counts[before];
      for (long i = 0; i < counts[sequence]; i++) place<Number>(row + i, sequence, starts[sequence] + i);
    });
    parallel_for(p.team, num_items, [&](long item) {
      long sequence = 0, row = 0;
      for (; item >= num_chunks(sequence) * p.num_kv_heads; sequence++) {
        item -= num_chunks(sequence) * p.num_kv_heads;
        row += counts[sequence];
      }
      attend<Number>(row, sequence, item % p.num_kv_heads, item / p.num_kv_heads * chunk_rows);
    });
  }

  long num_chunks(long sequence) const { return (counts[sequence] + chunk_rows - 1) / chunk_rows; }

  // Where the cache has a kv head of a sequence from a position on, the first one of a tile.
  template <class Number> Cached<Number> cached(long sequence, long kv_head, long position) const {
    const long token = (slots[sequence] * p.num_kv_heads + kv_head) * p.max_tokens + position, at = token * p.head_dim;
    const auto of_token = [&](float *scales) { return scales ? scales + token : nullptr; };
    return {(Number *)p.keys + at, (Number *)p.values + at, of_token(p.key_scales), of_token(p.value_scales)};
  }

  // Makes the queries of a row ready, and puts its keys and values into the cache.
  template <class Number> void place(long row, long sequence, long position) const {
    float *head = p.projected + row * row_size;
    for (long i = 0; i < p.num_heads; i++, head += p.head_dim) {
      turn(head, row, p.query_norm);
      for (long channel = 0; channel < p.head_dim; channel++) head[channel] *= (float)p.scale;
    }
    const long tile = position / kKeyTile * kKeyTile, in_tile = position - tile;
    const long width = smaller(kKeyTile, p.max_tokens - tile);
    alignas(64) Number numbers[kMaxHeadDim];
    for (long i = 0; i < p.num_kv_heads; i++, head += p.head_dim) {
      turn(head, row, p.key_norm);
      const Cached<Number> to = cached<Number>(sequence, i, tile);
      put(head, numbers, to.key_scales, in_tile);
      for (long channel = 0; channel < p.head_dim; channel++) to.keys[channel * width + in_tile] = numbers[channel];
    }
    for (long i = 0; i < p.num_kv_heads; i++, head += p.head_dim) {
      const Cached<Number> to = cached<Number>(sequence, i, tile);
      put(head, numbers, to.value_scales, in_tile);
      memcpy(to.values + in_tile * p.head_dim, numbers, p.head_dim * sizeof(Number));
    }
  }

  // A head as it is cached, and its scale where it has one.
  void put(const float *head, float *numbers, float *, long) const { memcpy(numbers, head, p.head_dim * sizeof(float)); }
  void put(const float *head, int8_t *numbers, float *scales, long token) const {
    alignas(64) float whole_vectors[kMaxHeadDim] = {};
    memcpy(whole_vectors, head, p.head_dim * sizeof(float));
    int32_t negative_sum;
    round_group(whole_vectors, in_vectors(p.head_dim), (int32_t *)numbers, 1, scales + token, &negative_sum);
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
  template <class Number> void attend(long row, long sequence, long kv_head, long skipped) const {
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
    Tile<Number> tile;
    for (tile.first = first_seen / kTile * kTile; tile.first < end; tile.first += kTile) {
      tile.num_tokens = smaller(kTile, end - tile.first);
      tile.read(cached<Number>(sequence, kv_head, tile.first), p.max_tokens - tile.first, p.head_dim);
      tile.is_fetching = false;
      const bool is_last = tile.first + kTile >= end;  // then the next head's follow, or another slot's
      tile.next_keys = cached<Number>(sequence, kv_head + is_last, is_last ? first_seen / kTile * kTile : tile.first + kTile).keys;
      meet_all(queries, num_queries, tile);
    }
    for (long i = 0; i < num_queries; i++)
      for (long channel = 0; channel < p.head_dim; channel++) queries[i].y[channel] /= queries[i].sum;
  }

  // Adds a tile to what the queries have met.
  template <class Number> void meet_all(Query *queries, long num_queries, Tile<Number> &tile) const {
    if constexpr (sizeof(Number) == 1)
      if (num_queries > kQueries) {
        DecodedTile decoded;
        decoded.read(tile, p.head_dim);
        return meet_all<float>(queries, num_queries, decoded);
      }
    for (long i = 0; i < num_queries; i += kQueries) {
      const long size = smaller(kQueries, num_queries - i);
      if (queries[i + size - 1].position < tile.first) continue;
      with_count<kQueries>(size, [&](auto count) { meet<count>(queries + i, tile); });
      tile.is_fetching = true;
    }
  }
  template <int kCount, class Number> void meet(Query *queries, const Tile<Number> &tile) const {
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
  template <int kCount, class Number>
  void score(const Query *queries, const Tile<Number> &tile, long token, float (&scores)[kCount][kTile]) const {
    Floats sums[kCount][kVectors] = {};
    for (long channel = 0; channel < p.head_dim; channel++) {
      Floats keys[kVectors];
      for (int v = 0; v < kVectors; v++) {
        const long at = token + v * kLanes;
        keys[v] = numbers(tile.keys[at / kKeyTile] + channel * kKeyTile + at % kKeyTile);
      }
      // The values come from memory meanwhile, and the next keys while these values are added up.
      for (long at = 0; at < kTile && token == 0 && !tile.is_fetching; at += kLine<Number>)
        __builtin_prefetch(tile.values + channel * kTile + at);
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
  template <class Number> float weigh(Query &query, const Tile<Number> &tile, float *scores) const {
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
      if (tile.key_scales) score *= load_some(tile.key_scales + token, tile.num_tokens - token);
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
      Floats seen = is_seen(token) ? weight : Floats{};
      sums += seen;
      if (tile.value_scales) seen *= load_some(tile.value_scales + token, tile.num_tokens - token);
      store(scores + token, seen);
    }
    const float shrinkage = before == query.largest ? 1 : exponential(broadcast(before - query.largest))[0];
    query.sum = query.sum * shrinkage + sum(sums);
    return shrinkage;
  }

  // Adds weighted values to kNumVectors vectors of channels.
  template <int kCount, int kNumVectors, class Number>
  void add_values(Query *queries, const Tile<Number> &tile, const float (&weights)[kCount][kTile], const float (&shrinkage)[kCount],
                  long channel) const {
    Floats sums[kCount][kNumVectors];
    for (int i = 0; i < kCount; i++)
      for (int v = 0; v < kNumVectors; v++)
        sums[i][v] = load_some(queries[i].y + channel + v * kLanes, p.head_dim - channel - v * kLanes) * shrinkage[i];
    for (long token = 0; token < tile.num_tokens; token++) {
      Floats values[kNumVectors];
      for (int v = 0; v < kNumVectors; v++)
        values[v] = numbers(tile.values + token * tile.value_stride + channel + v * kLanes);
      for (long at = 0; at < p.head_dim && channel == 0 && !tile.is_fetching; at += kLine<Number>)
        __builtin_prefetch(tile.next_keys + token * p.head_dim + at);
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
