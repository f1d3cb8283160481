// Products with weights of 8, 4 or 3 bits (packed.h) of activations that are rounded to int8 on the way (activations.h).
//
// y[row][output] = bias[output] + sum over groups of activation scale * weight scale * the exact integer sum, over the
// group, of activation code * (weight code - zero point). Groups are added in float32, in the same order for any number
// of rows, so that what comes out for a row does not depend on what rows it is multiplied with.

#include "product.h"
#include "run_kernel.h"

namespace {

// What a thread takes at a time: whole tiles.
constexpr int kPanelTiles = kColumns > kTileOutputs ? kColumns / kTileOutputs : 1;
constexpr int kPanelOutputs = kPanelTiles * kTileOutputs;
// Inputs of a panel that are multiplied at a time: its codes stay in the second-level cache while all rows pass by.
constexpr long kPartInputs = 2048, kPartBlocks = kPartInputs / kBlockInputs;

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
    int32_t *sums = (int32_t *)(scales + p.num_rows * num_groups);
    activations = {codes, scales, sums, p.num_inputs, padded_inputs, p.group_size, num_groups};
  }

  void run() const {
    const long num_row_blocks = quotient_up(p.num_rows, kMaxRows), num_panels = quotient_up(num_tiles, kPanelTiles);
    parallel_for(p.team, num_row_blocks, [&](long block) {
      const long end = smaller((block + 1) * kMaxRows, p.num_rows);
      for (long row = block * kMaxRows, size; row < end; row += size) {
        size = run_size(row, p.num_rows);
        round_run(activations, p.x, row, (int)size);
      }
    });
    // Rows are shared out too, where there are fewer panels than keep all threads busy.
    const long num_shares = smaller(quotient_up(4 * p.team.num_threads, num_panels), quotient_up(num_row_blocks, 4));
    parallel_for(p.team, num_panels * num_shares, [&](long item) {
      const long panel = item / num_shares, share = item % num_shares;
      const long begin = num_row_blocks * share / num_shares * kMaxRows;
      const long end = smaller(num_row_blocks * (share + 1) / num_shares * kMaxRows, p.num_rows);
      switch (p.bits) {
        case 8: return multiply_panel<8, false>(panel * kPanelTiles, begin, end);
        case 4: return multiply_panel<4, true>(panel * kPanelTiles, begin, end);
        case 3: return multiply_panel<3, true>(panel * kPanelTiles, begin, end);
      }
    });
  }

 private:
  template <int kBits, bool kHasZeros> void multiply_panel(long tile, long first_row, long end_row) const {
    alignas(64) uint8_t unpacked[kBits == 8 ? 1 : kPanelTiles * kPartBlocks * block_bytes(8)];
    const long tile_bytes = num_blocks * block_bytes(kBits);
    for (long block = 0; block < num_blocks; block += kPartBlocks) {
      const long part_blocks = smaller(kPartBlocks, num_blocks - block);
      const uint8_t *codes = p.codes + tile * tile_bytes + block * block_bytes(kBits);
      if (kBits == 8 || !p.unpacks_first) {
        multiply_part<kBits, kHasZeros>(tile, codes, tile_bytes, block, part_blocks, first_row, end_row);
        continue;
      }
      const long unpacked_bytes = part_blocks * block_bytes(8);
      for (long i = 0; i < smaller(kPanelTiles, num_tiles - tile); i++)
        unpack_blocks<kBits>(codes + i * tile_bytes, unpacked + i * unpacked_bytes, part_blocks);
      multiply_part<8, kHasZeros>(tile, unpacked, unpacked_bytes, block, part_blocks, first_row, end_row);
    }
  }

  // Multiplies rows with the blocks from `block` on, whose codes begin at `codes`.
  template <int kBits, bool kHasZeros>
  void multiply_part(long tile, const uint8_t *codes, long tile_bytes, long block, long part_blocks, long first_row,
                     long end_row) const {
    const long group = block / group_blocks;
    for (long row = first_row, size; row < end_row; row += size) {
      size = run_size(row, p.num_rows);
      const Run run{(const int32_t *)(activations.codes + row * activations.padded_inputs) + block * kSteps * size,
                    activations.scales + row * activations.num_groups + group * size,
                    activations.sums + row * activations.num_groups + group * size,
                    part_blocks,
                    group_blocks,
                    block == 0,
                    block + part_blocks == num_blocks};
      for (long column = 0; column < kPanelOutputs; column += kColumns) {
        const long output = tile * kTileOutputs + column;
        if (output >= p.num_outputs) break;
        const Weights weights = weights_at<kHasZeros>(tile, column, codes, tile_bytes, group);
        multiply_columns<kBits, kHasZeros>(weights, run, (int)size, output, p.y + row * p.num_outputs + output);
      }
    }
  }

  template <bool kHasZeros>
  Weights weights_at(long tile, long column, const uint8_t *codes, long tile_bytes, long group) const {
    const long weight_group = p.num_weight_groups > 1 ? group : 0;
    Weights weights{};
    for (int v = 0; v < kVectors; v++) {
      // A vector beyond the last tile reads that one again; what comes out is not kept.
      const long i = smaller((column + v * kLanes) / kTileOutputs, num_tiles - 1 - tile);
      const long lane = (column + v * kLanes) % kTileOutputs;
      const long entry = ((tile + i) * p.num_weight_groups + weight_group) * kTileOutputs + lane;
      weights.codes[v] = codes + i * tile_bytes + lane * 4;
      weights.scales[v] = (const uint8_t *)p.scales + entry * (kHasZeros ? sizeof(uint16_t) : sizeof(float));
      weights.zeros[v] = kHasZeros ? p.zeros + entry : nullptr;
    }
    weights.group_stride = p.num_weight_groups > 1 ? kTileOutputs : 0;
    weights.bias = p.bias ? p.bias + tile * kTileOutputs + column : nullptr;
    return weights;
  }

  template <int kBits, bool kHasZeros>
  void multiply_columns(Weights weights, const Run &run, int num_rows, long output, float *y) const {
    const long num_columns = smaller(kColumns, p.num_outputs - output);
    if (num_columns == kColumns) return multiply_run<kBits, kHasZeros>(num_rows, weights, run, y, p.num_outputs);
    // The last outputs do not fill the vectors: they are made aside, and copied as far as they are there.
    float aside[kMaxRows][kColumns] = {}, bias[kColumns] = {};
    for (int row = 0; row < num_rows && !run.is_first; row++)
      memcpy(aside[row], y + row * p.num_outputs, num_columns * sizeof(float));
    if (weights.bias) weights.bias = (float *)memcpy(bias, weights.bias, num_columns * sizeof(float));
    multiply_run<kBits, kHasZeros>(num_rows, weights, run, aside[0], kColumns);
    for (int row = 0; row < num_rows; row++)
      memcpy(y + row * p.num_outputs, aside[row], num_columns * sizeof(float));
  }

  const CodeProduct &p;
  const long num_tiles, num_blocks, group_blocks;
  Activations activations;
};

}  // namespace

LLMPQ_EXPORT(multiply_codes)(const CodeProduct *product) { Multiplication(*product).run(); }
