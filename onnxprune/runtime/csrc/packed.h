// Sparse weights in the order in which the kernels read them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace onnxprune {

// Columns are cut into blocks whose slab fits into the first-level cache, rows into chunks that
// can be computed apart. Within a block, rows are sorted by their number of entries, so that
// neighbours have loops of the same length, which processors predict.
class PackedWeights {
 public:
  // `taps` columns belong to each channel. With `contiguous`, all columns have a row in the slab,
  // also those without entries, so that a matrix can be read in place.
  PackedWeights(const SparseMatrix& matrix, size_t taps, bool contiguous, int block,
                const KernelSet& kernels);

  size_t rows() const { return rows_; }
  size_t nonzeros() const { return nonzeros_; }
  size_t slab_rows() const { return slab_.size(); }
  size_t block_count() const { return block_starts_.size() - 1; }
  size_t chunk_count() const { return chunk_starts_.size() - 1; }
  size_t largest_block() const { return largest_block_; }
  uint32_t chunk_start(size_t chunk) const { return chunk_starts_[chunk]; }

  // Rows of the slab of a block.
  const SlabRow* block(size_t index, size_t* size) const;
  size_t block_start(size_t index) const { return block_starts_[index]; }

  // Adds what a block of columns gives to the rows of the chunks `from` to `to`. `work` holds all
  // but groups and entries.
  void multiply(size_t block, size_t from, size_t to, BlockWork work, const Target& target) const;

 private:
  struct Part {
    size_t group = 0;
    size_t group_count = 0;
    size_t entry = 0;
  };

  void add_groups(const SparseMatrix& matrix, const std::vector<int32_t>& slab_row_of, size_t chunk,
                  size_t block, bool all_rows);
  void add_blocked_groups(const SparseMatrix& matrix, const std::vector<int32_t>& slab_row_of,
                          size_t chunk, size_t block, bool all_rows);
  void put(uint32_t word) { words_.push_back(word); }
  void put(float value);

  const KernelSet& kernels_;
  size_t rows_, nonzeros_;
  bool blocked_;
  size_t largest_block_ = 0;
  std::vector<SlabRow> slab_;
  std::vector<size_t> block_starts_;
  std::vector<uint32_t> chunk_starts_;
  std::vector<Part> parts_;
  std::vector<Group> groups_;
  std::vector<uint32_t> words_;  // entries: rows of the slab and the bits of values
};

}  // namespace onnxprune
