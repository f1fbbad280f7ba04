// Loop nest of the integer product: tasks (schedule.h) x column blocks x row blocks. A block kernel
// sums over all of k into an int32 block that stays in L1, and the epilogue stores it.
#include "cpu/gemm_s8/gemm_s8.h"

#include <cstring>

#include "common/math.h"
#include "common/parallel.h"
#include "cpu/element_type.h"
#include "cpu/expand_s4/expand_s4.h"
#include "cpu/gemm_s8/packed_layout.h"
#include "cpu/gemm_s8/schedule.h"
#include "cpu/prefetch.h"
#include "cpu/range.h"
#include "cpu/registry.h"

namespace tfq::cpu {
namespace {

constexpr int kAccSlot = 0;
constexpr int kRowsSlot = 1;
constexpr int kWeightSlot = 2;

// kRowsPerRead of 4-bit weights, which a task expands. Measured on Zen 3 (AVX2, the int8 block
// kernel on both sides): 16 rows cost 7 % of the product, 64 rows 2 %.
constexpr int64_t kRowsPerExpansion = 128;

struct Problem {
  const RowSource& source;
  int64_t m, n, k;
  const PackedWeight& weight;
  const Epilogue& epilogue;
  const gemm_s8_kernel& kernel;
  const epilogue_kernel& store;
  const expand_s4_kernel& expand;

  bool reads_strips() const { return source.strips != nullptr && kernel.strip_block != nullptr; }
  // Bytes of the left operand that a row brings into the cache.
  int64_t row_bytes() const { return reads_strips() ? source.strips->row_bytes : packed_k(k); }
};

// The task's rows as the kernel may read them: in a slab, in place, or copied with the row count
// rounded up.
struct Rows {
  const uint8_t* data;
  int64_t stride;
  const uint8_t** addresses;  // when not null: of each row in a slab
};

Rows fetch_strips(const Problem& p, Range rows) {
  const StripSource& strips = *p.source.strips;
  const int64_t count = rows.end - rows.begin;
  const int64_t address_bytes = count * static_cast<int64_t>(sizeof(uint8_t*));
  const int64_t slab_bytes = strips.slab_bytes(p.source.context, rows.begin, count);
  auto* memory = static_cast<uint8_t*>(
      thread_scratch(kRowsSlot, static_cast<size_t>(address_bytes + slab_bytes)));
  auto** addresses = reinterpret_cast<const uint8_t**>(memory);
  strips.copy(p.source.context, rows.begin, count, memory + address_bytes, addresses);
  return {nullptr, 0, addresses};
}

Rows fetch_rows(const Problem& p, Range rows) {
  if (p.reads_strips()) return fetch_strips(p, rows);
  const int64_t count = rows.end - rows.begin;
  const int64_t readable = round_up(count, p.kernel.row_step);
  if (p.source.direct != nullptr && rows.begin + readable <= p.m)
    return {p.source.direct + rows.begin * p.source.stride, p.source.stride, nullptr};
  const int64_t stride = packed_k(p.k);
  auto* copy =
      static_cast<uint8_t*>(thread_scratch(kRowsSlot, static_cast<size_t>(readable * stride)));
  p.source.copy(p.source.context, rows.begin, count, copy, stride);
  std::memset(copy + count * stride, 0, static_cast<size_t>((readable - count) * stride));
  return {copy, stride, nullptr};
}

// Brings a block of a row-major matrix of n columns to the cache: its rows are pieces of a line or
// two, far apart, which no hardware foresees.
void prefetch_block(const void* matrix, DType dtype, int64_t n, Range rows, Range columns) {
  if (matrix == nullptr) return;
  const int64_t size = element_bytes(dtype);
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const char* at = static_cast<const char*>(matrix) + (row * n + columns.begin) * size;
    prefetch_lines<1, 3>(at, (columns.end - columns.begin) * size);
  }
}

// `weight` holds the columns from group_first on.
void run_block(const Problem& p, const Rows& a, int64_t first_row, const int8_t* weight,
               int64_t group_first, Range rows, Range columns, int32_t* acc) {
  const int64_t panel_bytes = packed_panel_bytes(p.k);
  const int64_t row_count = rows.end - rows.begin, column_count = columns.end - columns.begin;
  const int8_t* b = weight + (columns.begin - group_first) / kPanelColumns * panel_bytes;
  // What the epilogue reads and writes comes while the products are computed.
  prefetch_block(p.epilogue.out, p.epilogue.out_dtype, p.n, rows, columns);
  prefetch_block(p.epilogue.residual, p.epilogue.residual_dtype, p.n, rows, columns);
  if (a.addresses != nullptr) {
    const StripSource& strips = *p.source.strips;
    p.kernel.strip_block({a.addresses + rows.begin - first_row, row_count, strips.strips,
                          strips.strip_stride, strips.strip_quads, b, panel_bytes, column_count,
                          acc});
  } else {
    const auto block = p.weight.zero_point == nullptr ? p.kernel.block : p.kernel.block_s4;
    block({a.data + (rows.begin - first_row) * a.stride, a.stride, row_count, b, panel_bytes,
           column_count, packed_k(p.k) / kQuad, acc});
  }
  p.store.store({acc, p.kernel.columns, rows.begin, row_count, columns.begin, column_count, p.n},
                p.epilogue);
}

// Weights of the next group, a slice for every block of rows: they come from beyond L2, where a
// block kernel would wait for them.
class Prefetch {
 public:
  Prefetch(const Problem& p, Range next, int64_t slices) {
    if (next.begin >= next.end) return;
    const int64_t bytes =
        p.weight.zero_point == nullptr ? packed_panel_bytes(p.k) : packed_panel_bytes_s4(p.k);
    const int64_t first = next.begin / kPanelColumns, panels = ceil_div(next.end, kPanelColumns);
    at_ = static_cast<const char*>(p.weight.data) + first * bytes;
    end_ = at_ + (panels - first) * bytes;
    slice_ = round_up(ceil_div(end_ - at_, slices), kLine);
  }

  void step() {
    const int64_t bytes = min_of(end_ - at_, slice_);
    prefetch_lines<0, 2>(at_, bytes);
    at_ += bytes;
  }

 private:
  const char* at_ = nullptr;
  const char* end_ = nullptr;
  int64_t slice_ = 0;
};

void run_task(const Problem& p, Range rows, Range columns, int64_t group_columns) {
  const gemm_s8_kernel& kernel = p.kernel;
  const Rows a = fetch_rows(p, rows);
  auto* acc = static_cast<int32_t*>(thread_scratch(
      kAccSlot, static_cast<size_t>(kernel.rows * kernel.columns) * sizeof(int32_t)));
  const int64_t row_blocks = ceil_div(rows.end - rows.begin, kernel.rows);
  if (kernel.begin != nullptr) kernel.begin();
  for (int64_t group = columns.begin; group < columns.end; group += group_columns) {
    const int64_t group_end = min_of(columns.end, group + group_columns);
    const int8_t* weight = int8_panels(p.expand, p.weight, p.n, p.k, group / kPanelColumns,
                                       ceil_div(group_end - group, kPanelColumns), kWeightSlot);
    Prefetch next(p, {group_end, min_of(columns.end, group_end + group_columns)}, row_blocks);
    for (int64_t row = rows.begin; row < rows.end; row += kernel.rows) {
      next.step();
      for (int64_t column = group; column < group_end; column += kernel.columns)
        run_block(p, a, rows.begin, weight, group, {row, min_of(rows.end, row + kernel.rows)},
                  {column, min_of(group_end, column + kernel.columns)}, acc);
    }
  }
  if (kernel.end != nullptr) kernel.end();
}

void copy_dense_rows(const void* context, int64_t row_first, int64_t rows, uint8_t* out,
                     int64_t out_stride) {
  const auto& args = *static_cast<const GemmArgs*>(context);
  for (int64_t i = 0; i < rows; ++i) {
    std::memcpy(out + i * out_stride, args.x + (row_first + i) * args.k,
                static_cast<size_t>(args.k));
    std::memset(out + i * out_stride + args.k, 0, static_cast<size_t>(out_stride - args.k));
  }
}

}  // namespace

void run_gemm(const RowSource& source, int64_t m, int64_t n, int64_t k, const PackedWeight& weight,
              const Epilogue& epilogue) {
  if (m == 0 || n == 0) return;
  const Level level = active_level();
  const Problem problem{source,
                        m,
                        n,
                        k,
                        weight,
                        epilogue,
                        select_gemm_s8(level),
                        select_epilogue(level),
                        select_expand_s4(level)};
  const int64_t least_rows = weight.zero_point == nullptr ? kRowsPerRead : kRowsPerExpansion;
  const GemmSchedule schedule =
      schedule_gemm(m, n, packed_k(k), problem.row_bytes(), least_rows,
                    {problem.kernel.rows, problem.kernel.columns, num_threads(), l2_bytes()});
  const int64_t row_tasks = ceil_div(m, schedule.task_rows);
  const int64_t column_tasks = ceil_div(n, schedule.task_columns);
  parallel_for(row_tasks * column_tasks, [&](int64_t task) {
    const int64_t row = task / column_tasks * schedule.task_rows;
    const int64_t column = task % column_tasks * schedule.task_columns;
    run_task(problem, {row, min_of(m, row + schedule.task_rows)},
             {column, min_of(n, column + schedule.task_columns)}, schedule.group_columns);
  });
}

void gemm_s8(const GemmArgs& args) {
  const bool whole_blocks = args.k % kBlockK == 0;
  run_gemm({whole_blocks ? args.x : nullptr, args.k, copy_dense_rows, nullptr, &args}, args.m,
           args.n, args.k, args.weight, args.epilogue);
}

}  // namespace tfq::cpu
