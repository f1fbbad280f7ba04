// Loop nest of attention. Key and value of all heads are packed first. A task then takes some rows
// of the query of one head: products with the key in blocks, which become logits while they are in
// L1; a softmax of each row; products of its uint8 weights with the value. The logits of a task
// stay in L2, and the matrix of all logits never exists.
#include "cpu/attention_s8/attention_s8.h"

#include <cstring>
#include <limits>

#include "common/parallel.h"
#include "common/softmax.h"
#include "cpu/attention_s8/operands.h"
#include "cpu/element_type.h"
#include "cpu/registry.h"

namespace tfq::cpu {
namespace {

constexpr int kHeadsSlot = 0;
constexpr int kTaskSlot = 1;
// Share of L2 for the logits of a task, and its most rows: more would reuse the key in L1 no
// better.
constexpr int64_t kLogitShare = 4;
constexpr int64_t kMaxTaskRows = 96;
// Tasks per thread that even out unequal progress of the cores.
constexpr int64_t kTasksPerThread = 4;

struct Problem {
  const AttentionArgs& args;
  const gemm_s8_kernel& gemm;
  const attention_s8_kernel& kernel;
  const OperandKernels& operand_kernels;
  AttentionOperands operands;
  int64_t task_rows;
  int64_t task_distance;  // rows from a thread's task to its next, if all take turns

  const HeadSizes& sizes() const { return operands.sizes; }
  int64_t row_blocks() const { return ceil_div(task_rows, gemm.rows); }
  int64_t column_blocks() const { return ceil_div(sizes().padded_tokens, gemm.columns); }
};

// Scratch memory of a task.
struct Workspace {
  explicit Workspace(const Problem& p)
      : rows(p.row_blocks() * p.gemm.rows),
        block_size(p.gemm.rows * p.gemm.columns),
        blocks(p.column_blocks()) {
    const int64_t logit_count = p.row_blocks() * blocks * block_size;
    const int64_t words = logit_count + block_size + rows * (kMaxLanes + 3);
    const int64_t bytes = rows * (p.sizes().key_depth + p.sizes().value_depth);
    acc = static_cast<int32_t*>(thread_scratch(
        kTaskSlot, static_cast<size_t>(words) * sizeof(int32_t) + static_cast<size_t>(bytes)));
    logits = acc + block_size;
    largest = reinterpret_cast<float*>(logits + logit_count);
    scale = largest + rows * kMaxLanes;
    zero_point = scale + rows;
    sum = zero_point + rows;
    query = reinterpret_cast<uint8_t*>(sum + rows);
    weights = query + rows * p.sizes().key_depth;
  }

  int32_t* block(int64_t row_block, int64_t column_block) const {
    return logits + (row_block * blocks + column_block) * block_size;
  }

  int64_t rows, block_size, blocks;
  int32_t* acc;       // one block of sums
  int32_t* logits;    // blocks of sums, then of float logits, [row block][column block]
  float* largest;     // (rows, kMaxLanes)
  float* scale;       // (rows) of the query times the attention's, to the base 2, > 0
  float* zero_point;  // (rows) of the query
  float* sum;         // (rows) of the weights
  uint8_t* query;     // (rows, key_depth)
  uint8_t* weights;   // (rows, value_depth)
};

struct TaskRows {
  int64_t batch, head, first, count;
};

void quantize_rows_of_query(const Problem& p, const TaskRows& t, const Workspace& w) {
  for (int64_t i = 0; i < t.count; ++i) {
    // Of the task this thread is likely to take next.
    const int64_t next = min_of(t.first + i + p.task_distance, p.args.tokens - 1);
    prefetch_head(p.args, p.args.query, t.batch * p.args.tokens + next, t.head);
    const QueryRow row = quantize_query(p.args, p.operand_kernels, t.batch, t.head, t.first + i,
                                        p.sizes(), w.query + i * p.sizes().key_depth);
    w.scale[i] = softmax_factor(row.scale, p.args.scale);
    w.zero_point[i] = row.zero_point;
  }
  for (int64_t i = 0; i < t.count * kMaxLanes; ++i)
    w.largest[i] = -std::numeric_limits<float>::infinity();
  // Rows a block kernel may read beyond the last.
  std::memset(w.query + t.count * p.sizes().key_depth, 0,
              static_cast<size_t>((w.rows - t.count) * p.sizes().key_depth));
  std::memset(w.weights + t.count * p.sizes().value_depth, 0,
              static_cast<size_t>((w.rows - t.count) * p.sizes().value_depth));
}

void compute_logits(const Problem& p, const TaskRows& t, const HeadOperands& head,
                    const Workspace& w) {
  const int64_t depth = p.sizes().key_depth, panel_bytes = kPanelColumns * depth;
  for (int64_t column = 0; column < p.sizes().padded_tokens; column += p.gemm.columns) {
    const int64_t columns = min_of(p.gemm.columns, p.sizes().padded_tokens - column);
    const KeyColumns key{head.key_sum + column, head.key_scale + column, head.key_offset + column};
    for (int64_t row = 0; row < t.count; row += p.gemm.rows) {
      const int64_t rows = min_of(p.gemm.rows, t.count - row);
      int32_t* block = w.block(row / p.gemm.rows, column / p.gemm.columns);
      p.gemm.block({w.query + row * depth, depth, rows, head.key + column * depth, panel_bytes,
                    columns, depth / kQuad, block});
      p.kernel.logits({block, rows, p.gemm.columns, columns, w.zero_point + row, key,
                       w.largest + row * kMaxLanes});
    }
  }
}

void compute_weights(const Problem& p, const TaskRows& t, const Workspace& w) {
  for (int64_t row = 0; row < t.count; ++row) {
    uint8_t* weights = w.weights + row * p.sizes().value_depth;
    const int32_t* logits = w.block(row / p.gemm.rows, 0) + row % p.gemm.rows * p.gemm.columns;
    const LogitRow u{reinterpret_cast<const float*>(logits), w.largest + row * kMaxLanes,
                     p.sizes().padded_tokens, p.gemm.columns, w.block_size};
    const int64_t sum = p.kernel.softmax(u, w.scale[row], weights);
    w.sum[row] = static_cast<float>(sum);
    for (int64_t column = p.sizes().padded_tokens; column < p.sizes().value_depth; ++column)
      weights[column] = 0;
  }
}

void multiply_value(const Problem& p, const TaskRows& t, const HeadOperands& head,
                    const Workspace& w) {
  const AttentionArgs& args = p.args;
  const int64_t depth = p.sizes().value_depth, panel_bytes = kPanelColumns * depth;
  const int64_t size = element_bytes(args.out_dtype);
  for (int64_t row = 0; row < t.count; row += p.gemm.rows) {
    const int64_t rows = min_of(p.gemm.rows, t.count - row);
    for (int64_t column = 0; column < args.head_size; column += p.gemm.columns) {
      const int64_t columns = min_of(p.gemm.columns, args.head_size - column);
      p.gemm.block({w.weights + row * depth, depth, rows, head.value + column * depth, panel_bytes,
                    columns, depth / kQuad, w.acc});
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t token = t.batch * args.tokens + t.first + row + i;
        const int64_t index = (token * args.heads + t.head) * args.head_size + column;
        p.kernel.store(w.acc + i * p.gemm.columns, columns, head.value_scale + column,
                       w.sum[row + i], args.out_dtype, static_cast<char*>(args.out) + index * size);
      }
    }
  }
}

void run_task(const Problem& p, const TaskRows& t) {
  const Workspace w(p);
  const HeadOperands head = p.operands.head(t.batch * p.args.heads + t.head);
  quantize_rows_of_query(p, t, w);
  if (p.gemm.begin != nullptr) p.gemm.begin();
  compute_logits(p, t, head, w);
  compute_weights(p, t, w);
  multiply_value(p, t, head, w);
  if (p.gemm.end != nullptr) p.gemm.end();
}

int64_t rows_per_task(const AttentionArgs& args, const gemm_s8_kernel& gemm,
                      int64_t padded_tokens) {
  const int64_t row_bytes = padded_tokens * static_cast<int64_t>(sizeof(int32_t));
  const int64_t fitting = min_of(kMaxTaskRows, l2_bytes() / kLogitShare / row_bytes);
  const int64_t all = args.batch * args.heads * args.tokens;
  const int64_t sharing = ceil_div(all, num_threads() * kTasksPerThread);
  const int64_t blocks = max_of(1, min_of(fitting, sharing) / gemm.rows);
  return min_of(args.tokens, blocks * gemm.rows);
}

}  // namespace

void attention_s8(const AttentionArgs& args) {
  if (args.batch == 0 || args.tokens == 0 || args.heads == 0) return;
  const Level level = active_level();
  const gemm_s8_kernel& gemm = select_gemm_s8(level);
  const attention_s8_kernel& kernel = select_attention_s8(level);
  const OperandKernels operand_kernels{select_quantize(level), kernel};
  const HeadSizes sizes(args, gemm.k_step);
  const int64_t heads = args.batch * args.heads;
  auto* memory =
      static_cast<char*>(thread_scratch(kHeadsSlot, static_cast<size_t>(heads * sizes.bytes())));
  const int64_t task_rows = rows_per_task(args, gemm, sizes.padded_tokens);
  const Problem problem{args,
                        gemm,
                        kernel,
                        operand_kernels,
                        {sizes, memory},
                        task_rows,
                        num_threads() * task_rows};
  const int64_t panels = sizes.padded_tokens / kPanelColumns;
  parallel_for(heads + args.batch * panels, [&](int64_t task) {
    const int64_t panel = task - heads;
    if (panel < 0) {
      pack_value(args, operand_kernels, task / args.heads, task % args.heads, problem.operands);
    } else {
      pack_key(args, operand_kernels, panel / panels, panel % panels * kPanelColumns,
               problem.operands);
    }
  });
  const int64_t tasks = ceil_div(args.tokens, problem.task_rows);
  parallel_for(heads * tasks, [&](int64_t task) {
    const int64_t head = task / tasks, first = task % tasks * problem.task_rows;
    run_task(problem, {head / args.heads, head % args.heads, first,
                       min_of(problem.task_rows, args.tokens - first)});
  });
}

}  // namespace tfq::cpu
