// Products of activations, rounded to int8 on the way (activations.h), and weights of 8, 4 or 3 bits (packed.h).
//
// y[row][output] = bias[output] + sum over groups of activation scale * weight scale * the exact integer sum, over the
// group, of activation code * (weight code - zero point). Groups are added in float32, in the same order for any number
// of rows, so that what comes out for a row does not depend on what rows it is multiplied with.

#include "product.h"
#include "run_kernel.h"

namespace {

// What is multiplied together: a panel of outputs, some rows, and a part of the inputs, so that the part's codes stay
// in the second-level cache, and the totals in the first, while the rows' activations pass by.
constexpr int kPanelTiles = kColumns > kTileOutputs ? kColumns / kTileOutputs : 1;
constexpr int kPanelOutputs = kPanelTiles * kTileOutputs;
constexpr long kShareRows = 20 * kMaxRows, kPartBytes = 131072;
// Up to so many rows, multiplying a panel takes no longer than reading the next one from memory.
constexpr long kMaxFetchRows = 64;

// Blocks of a part of so many bits, whole groups.
constexpr long part_blocks(int bits) {
  const long max_blocks = kPartBytes / (kPanelTiles * block_bytes(bits)), group_blocks = kMaxGroup / kBlockInputs;
  return max_blocks / group_blocks * group_blocks;
}

struct Part {
  long tile, first_row, num_rows, first_block, num_blocks;
};

constexpr long quotient_up(long a, long b) { return (a + b - 1) / b; }

class Multiplication {
 public:
  explicit Multiplication(const CodeProduct &product)
      : p(product),
        num_tiles(quotient_up(p.num_outputs, kTileOutputs)),
        num_blocks(quotient_up(p.num_inputs, kBlockInputs)),
        group_blocks(p.group_size / kBlockInputs) {
    const long padded_inputs = num_blocks * kBlockInputs, num_groups = quotient_up(num_blocks, group_blocks);
    int8_t *codes = (int8_t *)p.work;
    float *scales = (float *)(codes + p.num_rows * padded_inputs);
    int32_t *negative_sums = (int32_t *)(scales + p.num_rows * num_groups);
    activations = {codes, scales, negative_sums, p.num_inputs, padded_inputs, p.group_size, num_groups};
  }

  void run() const {
    const long num_row_blocks = quotient_up(p.num_rows, kMaxRows), num_panels = quotient_up(num_tiles, kPanelTiles);
    parallel_for(p.team, num_row_blocks, [&](long block) {
      const long end = smaller((block + 1) * kMaxRows, p.num_rows);
      for (long row = block * kMaxRows, size; row < end; row += size) {
        size = run_size(row, p.num_rows);
        round_run(activations, p.x, row, (int)size, p.rotates);
      }
    });
    // Rows are shared out too, where there are fewer panels than keep all threads busy.
    const long num_shares = smaller(quotient_up(4 * p.team.num_threads, num_panels), quotient_up(num_row_blocks, 4));
    parallel_for(p.team, num_panels * num_shares, [&](long item) {
      const long panel = item / num_shares, share = item % num_shares;
      const long begin = num_row_blocks * share / num_shares * kMaxRows;
      const long end = smaller(num_row_blocks * (share + 1) / num_shares * kMaxRows, p.num_rows);
      for (long row = begin; row < end; row += kShareRows) {
        const long num_rows = smaller(kShareRows, end - row);
        switch (p.bits) {
          case 8: multiply_panel<8, false>(panel * kPanelTiles, row, num_rows); break;
          case 4: multiply_panel<4, true>(panel * kPanelTiles, row, num_rows); break;
          case 3: multiply_panel<3, true>(panel * kPanelTiles, row, num_rows); break;
        }
      }
    });
  }

 private:
  // Up to kShareRows rows times the outputs of the kPanelTiles tiles from `tile` on.
  template <int kBits, bool kHasZeros> void multiply_panel(long tile, long first_row, long num_rows) const {
    alignas(64) float totals[kPanelOutputs / kColumns][kShareRows * kColumns];
    alignas(64) uint8_t unpacked[kBits == 8 ? 1 : kPartBytes];
    const bool unpacks_first = kBits != 8 && p.unpacks_first;
    const long max_blocks = part_blocks(unpacks_first ? 8 : kBits), tile_bytes = num_blocks * block_bytes(kBits);
    for (long block = 0; block < num_blocks; block += max_blocks) {
      const Part part{tile, first_row, num_rows, block, smaller(max_blocks, num_blocks - block)};
      const uint8_t *codes = p.codes + tile * tile_bytes + block * block_bytes(kBits);
      const long unpacked_bytes = part.num_blocks * block_bytes(8);
      for (long i = 0; unpacks_first && i < smaller(kPanelTiles, num_tiles - tile); i++)
        unpack_blocks<kBits>(codes + i * tile_bytes, unpacked + i * unpacked_bytes, part.num_blocks);
      for (long column = 0; column < smaller(kPanelOutputs, p.num_outputs - tile * kTileOutputs); column += kColumns)
        if (unpacks_first)
          multiply_part<8, kHasZeros>(part, unpacked, unpacked_bytes, column, totals[column / kColumns]);
        else
          multiply_part<kBits, kHasZeros>(part, codes, tile_bytes, column, totals[column / kColumns]);
    }
  }

  // The rows of a part times kColumns outputs, `column` outputs behind its first. Its codes begin at `codes`, and those
  // of its next tile tile_bytes behind.
  template <int kBits, bool kHasZeros>
  void multiply_part(const Part &part, const uint8_t *codes, long tile_bytes, long column, float *totals) const {
    const long output = part.tile * kTileOutputs + column, num_columns = smaller(kColumns, p.num_outputs - output);
    const long group = part.first_block / group_blocks;
    Weights weights = weights_at<kHasZeros>(part, codes, tile_bytes, column);
    const long ahead = ahead_of(codes, tile_bytes, part.num_blocks * block_bytes(kBits));
    // The last outputs may not fill the vectors. They are made aside, and as many copied as there are.
    float y_aside[kMaxRows * kColumns], bias_aside[kColumns] = {};
    if (weights.bias && num_columns < kColumns)
      weights.bias = (float *)memcpy(bias_aside, weights.bias, num_columns * sizeof(float));
    for (long row = part.first_row, size; row < part.first_row + part.num_rows; row += size) {
      size = run_size(row, p.num_rows);
      const int32_t *run_codes = (const int32_t *)(activations.codes + row * activations.padded_inputs);
      const long entry = row * activations.num_groups + group * size;
      const Run run{run_codes + part.first_block * kSteps * size,
                    activations.scales + entry,
                    activations.negative_sums + entry,
                    part.num_blocks,
                    group_blocks,
                    part.first_block == 0,
                    part.first_block + part.num_blocks == num_blocks,
                    ahead,
                    ahead ? part.num_blocks * (row - part.first_row) / part.num_rows : 0,
                    ahead ? part.num_blocks * (row - part.first_row + size) / part.num_rows : 0};
      float *run_totals = totals + (row - part.first_row) * kColumns, *y = p.y + row * p.num_outputs + output;
      if (num_columns == kColumns) {
        multiply_run<kBits, kHasZeros>((int)size, weights, run, run_totals, y, p.num_outputs);
        continue;
      }
      multiply_run<kBits, kHasZeros>((int)size, weights, run, run_totals, y_aside, kColumns);
      for (int i = 0; i < size && run.is_last; i++)
        memcpy(y + i * p.num_outputs, y_aside + i * kColumns, num_columns * sizeof(float));
    }
  }

  // How many bytes behind its codes are those that this thread is likely to multiply next, behind by as many panels as
  // there are threads; 0 if there are none, or rows are so many that codes come soon enough by themselves.
  long ahead_of(const uint8_t *codes, long tile_bytes, long part_bytes) const {
    if (p.num_rows > kMaxFetchRows) return 0;
    const long ahead = kPanelTiles * p.team.num_threads * tile_bytes;
    const uint8_t *last = codes + (kPanelTiles - 1) * tile_bytes + part_bytes;
    return codes >= p.codes && last + ahead <= p.codes + num_tiles * num_blocks * block_bytes((int)p.bits) ? ahead : 0;
  }

  template <bool kHasZeros>
  Weights weights_at(const Part &part, const uint8_t *codes, long tile_bytes, long column) const {
    const long group = p.num_weight_groups > 1 ? part.first_block / group_blocks : 0;
    Weights weights{};
    for (int v = 0; v < kVectors; v++) {
      // A vector beyond the last tile reads that one again; what comes out is not kept.
      const long i = smaller((column + v * kLanes) / kTileOutputs, num_tiles - 1 - part.tile);
      const long lane = (column + v * kLanes) % kTileOutputs;
      const long entry = ((part.tile + i) * p.num_weight_groups + group) * kTileOutputs + lane;
      weights.codes[v] = codes + i * tile_bytes + lane * 4;
      weights.scales[v] = (const uint8_t *)p.scales + entry * (kHasZeros ? sizeof(uint16_t) : sizeof(float));
      weights.zeros[v] = kHasZeros ? p.zeros + entry : nullptr;
    }
    weights.group_stride = p.num_weight_groups > 1 ? kTileOutputs : 0;
    weights.bias = p.bias ? p.bias + part.tile * kTileOutputs + column : nullptr;
    return weights;
  }

  const CodeProduct &p;
  const long num_tiles, num_blocks, group_blocks;
  Activations activations;
};

}  // namespace

LLMPQ_EXPORT(multiply_codes)(const CodeProduct *product) { Multiplication(*product).run(); }
