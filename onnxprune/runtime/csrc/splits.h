#pragma once

#include <cstddef>

#include "packed.h"

namespace onnxprune {

// Processors that this process may use; ONNX Runtime's interface does not tell how many threads a
// session has.
size_t processors();

// A part of a tile: piece number `piece` of `pieces` of its rows.
struct Part {
  size_t tile, piece, pieces;
};

// How the tiles of a layer are cut into tasks, so that all processors have work.
//
// ONNX Runtime divides tasks into as many ranges as there are threads, and a thread that has done its
// own helps the others. If some tiles stay whole, they and the pieces of the others are therefore
// listed processor by processor.
class Splits {
 public:
  // All tiles in as many pieces.
  Splits(size_t tiles, size_t pieces) : Splits(tiles, pieces, 0, 1) {}

  // Each piece packs the tile's slab again, so there are no more than that is worth. `pack_cycles` is
  // what one vector of the slab costs.
  static Splits of(const PackedWeights& weights, size_t tiles, int pixels, double pack_cycles);

  size_t count() const { return whole_ + (tiles_ - whole_) * pieces_; }

  Part part(size_t task) const {
    const size_t of_lane = count() / lanes_, whole = whole_ / lanes_;
    const size_t lane = task / of_lane, place = task % of_lane;
    if (place < whole) return {lane * whole + place, 0, 1};
    const size_t piece = lane * (of_lane - whole) + place - whole;
    return {whole_ + piece / pieces_, piece % pieces_, pieces_};
  }

  // Whether the thread that does a task probably also does the same piece of the next tile: what
  // another thread writes meanwhile must be left to it.
  bool goes_on(size_t task) const {
    if (whole_ > 0) return task % (count() / lanes_) + 1 < whole_ / lanes_;
    const auto lane = [&](size_t at) { return at * processors() / count(); };
    return task + pieces_ < count() && lane(task) == lane(task + pieces_);
  }

 private:
  // The first `whole` tiles stay whole; they and the pieces of the others can be shared out evenly
  // among `lanes`.
  Splits(size_t tiles, size_t pieces, size_t whole, size_t lanes)
      : tiles_(tiles), pieces_(pieces), whole_(whole), lanes_(lanes) {}

  size_t tiles_, pieces_, whole_, lanes_;
};

}  // namespace onnxprune
