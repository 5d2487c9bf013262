// Backpropagation over many batches: the loop of core/recursion.py, without Python between the steps.
//   FWD   z^l = a^{l-1} (W^l)ᵀ + b^l,  a^l = σ(z^l)
//   BP1   δ^L = ∂C/∂a^L ⊙ σ'(z^L)
//   BP2   δ^l = σ'(z^l) ⊙ (δ^{l+1} W^{l+1})
//   BP3   ∂C/∂b^l = Σ_n δ^l_n
//   BP4   ∂C/∂W^l = (δ^l)ᵀ a^{l-1}
//   SGD   θ ← θ − η ∂C/∂θ
//
// Python puts `using real = float`, or double, before this text, and the formulas of the model where it says FORMULAS.
//
// Shapes: N is the rows of a batch. z, a and δ of a layer are [N, width]: n_out columns, padded to whole vectors. So no
// loop has a remainder. What is computed in the padding is never used.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <limits>
#include <new>
#include <thread>
#include <vector>

// --- the formulas ---
// glibc computes these for whole vectors, too, but tells the compiler so for inexact mathematics alone.
#if defined(__GLIBC__) && defined(__x86_64__) && !defined(__clang__)
#define OF_VECTORS(name) \
    extern "C" __attribute__((simd("notinbranch"))) double name(double) noexcept; \
    extern "C" __attribute__((simd("notinbranch"))) float name##f(float) noexcept;
#if __GLIBC_PREREQ(2, 35)
OF_VECTORS(exp) OF_VECTORS(log) OF_VECTORS(expm1) OF_VECTORS(log1p) OF_VECTORS(tanh) OF_VECTORS(erf)
#endif
#endif

struct Activation {
    void (*forward)(const real* z, real* a, long count);
    void (*times_derivative)(const real* saved, real* delta, long count);
    bool from_output;  // saved is a, else z
};
// a = σ(z), and δ = ∂C/∂a ⊙ σ'(z) in the place of ∂C/∂a, entry by entry.
template <real forward(real)>
static void apply_forward(const real* z, real* a, long count) {
    for (long i = 0; i < count; i++) a[i] = forward(z[i]);
}
template <real derivative(real)>
static void multiply_by_derivative(const real* saved, real* delta, long count) {
    for (long i = 0; i < count; i++) delta[i] *= derivative(saved[i]);
}

// FORMULAS

// --- what Python passes: library.py has the same structs ---
// Of a parameter, as torch.optim.SGD names them; first_step: v = g at the first of the steps.
struct Options {
    double lr, momentum, dampening, weight_decay;
    int64_t nesterov, maximize, first_step;
};
struct Param {
    real *value, *velocity;  // in PyTorch's layout; value is null for no bias, velocity without momentum
    Options options;
    int64_t learns;
};
typedef void (*Gemm)(const char*, const char*, const int*, const int*, const int*, const real*, const real*, const int*,
                     const real*, const int*, const real*, real*, const int*);
struct LayerSpec {
    int64_t n_in, n_out, activation;  // activation: its number in ACTIVATIONS, or -1
    Gemm gemm;                        // PyTorch's BLAS if it is to compute the products (of one thread), or null
    Param weight, bias;
};
struct Batches {
    const real* x;               // inputs, [M, n_0]
    const int64_t* order;        // [rows]: the rows of x, in order
    const real* targets;         // [rows, n_L]: y; for cross-entropy k, what the target puts on each class
    const real* grad_entries;    // [rows]: ∂C/∂c of the loss c of a sample: 1/N for a mean
    const real* output_weights;  // [n_L]: weights of the outputs in the loss, or null
    const real* constants;       // [count, n_L]: constants of the loss that differ from output to output
    int64_t rows, size;          // rows in all, rows of a batch
    double* losses;              // [steps]: C of each, 0 at first
    real* outputs;               // [rows, n_L]: a^L of each row, or null
};

// --- vectors ---
#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64, TILE_ROWS = 12;  // 32 registers: 12 × 2 sums, 2 vectors of b, numbers of a
#else
constexpr int VECTOR_BYTES = 32, TILE_ROWS = 6;  // 16 registers: 6 × 2 sums, 2 vectors of b, a number of a
#endif
constexpr int WIDTH = VECTOR_BYTES / sizeof(real);  // numbers in a vector
constexpr int PANEL = 2 * WIDTH;                    // columns in a panel, two vectors
constexpr long LINE = 64 / sizeof(real);            // numbers in a line of the cache
constexpr long BLOCK = 64;                          // rows of ∂C/∂W at a time, where it is stored
constexpr long SAMPLES = 64;                        // samples at a time whose losses are computed
struct Range { long first, last; };  // without the last
typedef real vec __attribute__((vector_size(VECTOR_BYTES)));

static vec load(const real* p) { return *(const vec*)p; }
static void store(real* p, vec v) { *(vec*)p = v; }
static long padded(long n) { return (n + WIDTH - 1) / WIDTH * WIDTH; }
// Memory for numbers, 0 at first, aligned for vectors; none for a count of 0.
struct Memory {
    real* at = nullptr;
    explicit Memory(long count) {
        if (count == 0) return;
        const size_t bytes = (count * sizeof(real) + VECTOR_BYTES - 1) / VECTOR_BYTES * VECTOR_BYTES;
        at = (real*)std::aligned_alloc(VECTOR_BYTES, bytes);
        if (!at) throw std::bad_alloc();
        std::fill_n(at, bytes / sizeof(real), real(0));
    }
    Memory(const Memory&) = delete;
    ~Memory() { std::free(at); }
};

// --- products ---
// c = Σ_k a(row, k) b[k] for R rows and V vectors of columns. The sums stay in registers; use(row, v, sum) takes them.
template <int R, int V, class A, class Use>
static inline void tile(long first, long K, A a, const real* b, long ldb, Use use) {
    constexpr int PARTS = R * V < 8 ? 8 / (R * V) : 1;  // of each sum: an addition waits for the one before
    vec sum[PARTS][R][V] = {};
    const auto add = [=](long k, vec (&part)[R][V]) {
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            const real x = a(first + r, k);
            for (int v = 0; v < V; v++) part[r][v] += x * load(b + k * ldb + v * WIDTH);
        }
    };
    long k = 0;
    for (; k + PARTS <= K; k += PARTS)
#pragma GCC unroll 8
        for (int part = 0; part < PARTS; part++) add(k + part, sum[part]);
    for (; k < K; k++) add(k, sum[0]);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) {
            for (int part = 1; part < PARTS; part++) sum[0][r][v] += sum[part][r][v];
            use(first + r, v, sum[0][r][v]);
        }
}

// So many tiles, one below the other. R counts down to their number of rows, which is known only now.
template <int R, int V, class A, class Use>
static void tiles(long rows, long count, long first, long K, A a, const real* b, long ldb, Use use) {
    if constexpr (R > 0) {
        if (rows != R) return tiles<R - 1, V>(rows, count, first, K, a, b, ldb, use);
        for (long i = 0; i < count; i++) tile<R, V>(first + i * R, K, a, b, ldb, use);
    }
}

// V vectors of columns for a range of rows, in tiles of nearly equal size.
template <int V, class A, class Use>
static void panel(Range rows, long K, A a, const real* b, long ldb, Use use) {
    const long n = rows.last - rows.first, count = (n + TILE_ROWS - 1) / TILE_ROWS;
    if (count == 0) return;
    const long least = n / count, larger = n % count;
    tiles<TILE_ROWS, V>(least + 1, larger, rows.first, K, a, b, ldb, use);
    tiles<TILE_ROWS, V>(least, count - larger, rows.first + larger * (least + 1), K, a, b, ldb, use);
}

// A matrix [K, n] packed for the right side of a product: panels of columns, one after the other, each row after row.
struct Packed {
    long K, n;
    Memory memory;
    Packed(long rows, long columns) : K(rows), n(columns), memory(rows * padded(columns)) {}
    static long step(long j, long n) { return std::min<long>(PANEL, padded(n) - j); }  // from row to row of a panel
    long step(long j) const { return step(j, n); }
    real* row(long k, long j) const { return memory.at + j * K + k * step(j); }  // of the panel from column j on
    // Calls use(k, rows, j, columns) for each block of a panel, from row k and column j on.
    template <class Use>
    void blocks(Range ks, Use use) const {
        for (long j = 0; j < n; j += PANEL)
            for (long k = ks.first; k < ks.last; k += PANEL)
                use(k, std::min<long>(PANEL, ks.last - k), j, std::min<long>(PANEL, n - j));
    }
};

// A product for some rows and columns; use(j) takes the panel from column j on. b is packed, or has rows ld apart.
template <class A, class Use>
static void product(Range rows, Range columns, long n, long K, A a, const real* b, long ld, Use use) {
    for (long j = columns.first; j < columns.last; j += PANEL) {
        const real* from = b + j * (ld ? 1 : K);
        const long step = ld ? ld : Packed::step(j, n);
        if (columns.last - j > WIDTH) panel<2>(rows, K, a, from, step, use(j));
        else panel<1>(rows, K, a, from, step, use(j));
    }
}

// c = a b + start for some rows and columns; start may be null, c has rows of padded(b.n). The rows of `next`, of the
// batch after this one, are fetched meanwhile.
static void multiply(Range rows, Range columns, const real* const* a, const Packed& b, const real* start, real* c,
                     const real* const* next) {
    const auto element = [=](long row, long k) {
        if (k % LINE == 0) __builtin_prefetch(next[row] + k);
        return a[row][k];
    };
    product(rows, columns, b.n, b.K, element, b.memory.at, 0, [=, ldc = padded(b.n)](long j) {
        return [=, c = c + j, start = start ? start + j : nullptr](long row, int v, vec sum) {
            store(c + row * ldc + v * WIDTH, start ? sum + load(start + v * WIDTH) : sum);
        };
    });
}

// to[c, r] = from[r, c] for a block of a matrix; the steps lead from row to row. It would be slower inlined.
[[gnu::noinline]] static void transpose(const real* from, long step, long rows, long columns, real* to, long to_step) {
    for (long r = 0; r < rows; r++)
        for (long c = 0; c < columns; c++) to[c * to_step + r] = from[r * step + c];
}

// --- gradient descent ---
// The update of a parameter, in the letters of core/sgd.py: η, μ, share = 1 − τ (1 at the first step), λ, s.
struct Sgd {
    real lr, momentum, share, weight_decay, sign;
    bool nesterov;
    Sgd(const Options& o, bool first_step)
        : lr(o.lr), momentum(o.momentum), share(first_step ? 1 : 1 - o.dampening), weight_decay(o.weight_decay),
          sign(o.maximize ? -1 : 1), nesterov(o.nesterov) {}
    // θ ← θ − η g,  g = s ∂C/∂θ + λ θ
    template <class T> T plain(T theta, T grad) const {
        return (1 - lr * weight_decay) * theta - lr * sign * grad;  // SGD
    }
    // v ← μ v + (1 − τ) g;  θ ← θ − η v, or by Nesterov − η (g + μ v)
    template <class T> T with_velocity(T theta, T& v, T grad) const {
        const T g = sign * grad + weight_decay * theta;
        v = momentum * v + share * g;
        return theta - lr * (nesterov ? g + momentum * v : v);  // SGD
    }
};

// --- a layer ---
struct Layer {
    const LayerSpec spec;
    const long n_in, n_out, width;
    const bool blas;                  // its products are PyTorch's, on W in place: [n_out, n_in]
    const bool keeps_z;               // σ' is computed from z, else from a, which then overwrites z
    Packed weight, velocity;          // W and its v by input, [n_in, n_out]; empty with blas
    Packed by_output;                 // W by output, [n_out, n_in], for BP2; empty with blas
    Memory bias, bias_velocity;       // [width]
    Memory z, a, delta;               // [N, width]
    Memory gathered;                  // [N, n_0]: the inputs of a first layer with blas
    Memory grad;                      // [BLOCK, n_in]: some rows of ∂C/∂W, with blas and momentum
    std::vector<const real*> a_prev;  // N rows of n_in
    std::vector<const real*> deltas;  // N rows of δ
    std::vector<const real*> next;    // N rows: the inputs of the next batch, or a_prev

    Layer(const LayerSpec& s, long rows, bool is_first, bool passes_back)
        : spec(s), n_in(s.n_in), n_out(s.n_out), width(padded(n_out)), blas(s.gemm),
          keeps_z(s.activation >= 0 && !ACTIVATIONS[s.activation].from_output), weight(blas ? 0 : n_in, n_out),
          velocity(blas || !s.weight.velocity ? 0 : n_in, n_out), by_output(blas || !passes_back ? 0 : n_out, n_in),
          bias(width), bias_velocity(width), z(rows * width), a(keeps_z ? rows * width : 0), delta(rows * width),
          gathered(blas && is_first ? rows * n_in : 0), grad(blas && s.weight.velocity ? BLOCK * n_in : 0),
          a_prev(rows), next(rows) {
        for (long r = 0; r < rows; r++) deltas.push_back(delta.at + r * width);
        if (s.bias.value) std::copy_n(s.bias.value, n_out, bias.at);
        if (s.bias.velocity) std::copy_n(s.bias.velocity, n_out, bias_velocity.at);
        pack(s.weight.value, weight);
        pack(s.weight.velocity, velocity);
        transpose_weight({0, n_in});
    }
    real* output() const { return keeps_z ? a.at : z.at; }
    long ld_prev() const { return gathered.at ? n_in : padded(n_in); }
    void pack(const real* from, const Packed& to) const {
        to.blocks({0, to.K}, [=, &to](long k, long rows, long j, long columns) {
            transpose(from + j * n_in + k, n_in, columns, rows, to.row(k, j), to.step(j));
        });
    }
    void unpack(const Packed& from, real* to) const {
        from.blocks({0, from.K}, [=, &from](long k, long rows, long j, long columns) {
            transpose(from.row(k, j), from.step(j), rows, columns, to + j * n_in + k, n_in);
        });
    }
    // W by output from W by input, for some of the inputs.
    void transpose_weight(Range inputs) const {
        if (by_output.K == 0) return;
        weight.blocks(inputs, [=](long k, long rows, long j, long columns) {
            transpose(weight.row(k, j), weight.step(j), rows, columns, by_output.row(j, k), by_output.step(k));
        });
    }

    // Writes what was trained back to PyTorch's parameters and momentum buffers.
    void write_back() const {
        if (spec.weight.learns) unpack(weight, spec.weight.value), unpack(velocity, spec.weight.velocity);
        if (spec.bias.learns) std::copy_n(bias.at, n_out, spec.bias.value);
        if (spec.bias.learns && spec.bias.velocity) std::copy_n(bias_velocity.at, n_out, spec.bias.velocity);
    }

    // PyTorch's product, which counts columns first: c [m, n] ← α a b + β c, with aᵀ or bᵀ where it says "T".
    void gemm(const char* at, const char* bt, int m, int n, int k, real alpha, const real* a, int lda, const real* b,
              int ldb, real beta, real* c, int ldc) const {
        spec.gemm(at, bt, &m, &n, &k, &alpha, a, &lda, b, &ldb, &beta, c, &ldc);
    }

    void forward(Range rows, Range columns) const {
        const long n = rows.last - rows.first, m = columns.last - columns.first;
        if (blas) {  // FWD: z = a_prev Wᵀ + b
            for (long r = rows.first; r < rows.last; r++) std::copy_n(bias.at, width, z.at + r * width);
            gemm("T", "N", n_out, n, n_in, 1, spec.weight.value, n_in, a_prev[0], ld_prev(), 1, z.at, width);
        } else multiply(rows, columns, a_prev.data(), weight, bias.at, z.at, next.data());  // FWD: z = a_prev Wᵀ + b
        if (spec.activation < 0) return;
        for (long r = rows.first; r < rows.last; r += m == width ? n : 1) {  // whole rows are one stretch of memory
            const long at = r * width + columns.first, count = m == width ? n * m : m;
            ACTIVATIONS[spec.activation].forward(z.at + at, output() + at, count);  // FWD: a = σ(z)
        }
    }

    // δ from ∂C/∂a, which stands in its place; and, unless it is null, ∂C/∂a of the layer below, [N, padded(n_in)].
    void backward(Range rows, real* grad_a) const {
        const long first = rows.first * width, count = (rows.last - rows.first) * width;
        if (spec.activation >= 0)
            ACTIVATIONS[spec.activation].times_derivative(z.at + first, delta.at + first, count);  // BP1, BP2: ⊙ σ'(z)
        if (!grad_a) return;
        const int n = rows.last - rows.first, ldc = padded(n_in);  // BP2, left factor: δ W
        if (blas) gemm("N", "N", n_in, n, n_out, 1, spec.weight.value, n_in, delta.at, width, 0, grad_a, ldc);
        else multiply(rows, {0, ldc}, deltas.data(), by_output, nullptr, grad_a, deltas.data());
    }

    // A step from a batch of so many rows: for some inputs and outputs of W, and for b.
    void update(long rows, Range inputs, Range outputs, bool first, bool and_bias) const {
        if (spec.weight.learns && spec.weight.velocity) update_weight<true>(rows, inputs, outputs, first);
        if (spec.weight.learns && !spec.weight.velocity) update_weight<false>(rows, inputs, outputs, first);
        if (!spec.bias.learns || !and_bias) return;
        const Sgd sgd(spec.bias.options, first && spec.bias.options.first_step);
        for (long j = 0; j < width; j += WIDTH) {
            vec grad = {};
            for (long r = 0; r < rows; r++) grad += load(delta.at + r * width + j);  // BP3: Σ_n δ_n
            vec b = load(bias.at + j), v = load(bias_velocity.at + j);
            store(bias.at + j, spec.bias.velocity ? sgd.with_velocity(b, v, grad) : sgd.plain(b, grad));  // SGD
            store(bias_velocity.at + j, v);
        }
    }
    template <bool MOMENTUM>
    void update_weight(long rows, Range inputs, Range outputs, bool first) const {
        const Sgd sgd(spec.weight.options, first && spec.weight.options.first_step);
        if (blas) return update_in_place(rows, sgd);
        const auto a = [x = a_prev.data()](long in, long k) { return x[k][in]; };
        product(inputs, outputs, n_out, rows, a, delta.at, width, [=](long j) {
            return [=, w = weight.row(0, j), u = velocity.row(0, j), step = weight.step(j)](long in, int i, vec grad) {
                const long at = in * step + i * WIDTH;
                if constexpr (!MOMENTUM) return store(w + at, sgd.plain(load(w + at), grad));  // BP4, SGD
                vec v = load(u + at);
                store(w + at, sgd.with_velocity(load(w + at), v, grad));  // BP4, SGD
                store(u + at, v);
            };
        });
        transpose_weight(inputs);
    }

    // The same by PyTorch's BLAS: it adds the product to W or, with momentum, computes some rows of it at a time.
    void update_in_place(long rows, const Sgd& sgd) const {
        real *w = spec.weight.value, *v = spec.weight.velocity;
        const auto product = [=](long j, long count, real alpha, real beta, real* into) {  // BP4: δᵀ a_prev
            gemm("N", "T", n_in, count, rows, alpha, a_prev[0], ld_prev(), delta.at + j, width, beta, into, n_in);
        };
        if (!v) return product(0, n_out, -sgd.lr * sgd.sign, 1 - sgd.lr * sgd.weight_decay, w);  // SGD
        for (long j = 0; j < n_out; j += BLOCK, w += BLOCK * n_in, v += BLOCK * n_in) {
            const long count = std::min(BLOCK, n_out - j);
            product(j, count, 1, 0, grad.at);
            for (long i = 0; i < count * n_in; i++) w[i] = sgd.with_velocity(w[i], v[i], grad.at[i]);  // SGD
        }
    }
};

// --- the loss ---
// Writes c of some samples, and ∂C/∂a in the place of a, from targets y and g = ∂C/∂c. a and y are [n, count]: samples
// lie side by side, so that a sum over outputs is a sum of vectors.
template <class L>
static void losses(long n, long count, real* __restrict a, const real* __restrict y, const real* __restrict g,
                   const real* weights, const real* constants, double* __restrict c) {
    std::fill_n(c, count, 0.0);
    if constexpr (CROSS_ENTROPY) {  // c = −Σ_j y_j log p_j,  ∂c/∂z = p Σ_j y_j − y
        real highest[SAMPLES], sum[SAMPLES] = {}, total[SAMPLES] = {};
        std::copy_n(a, count, highest);
        for (long j = 0, i = 0; j < n; j++)
            for (long s = 0; s < count; s++, i++) highest[s] = a[i] > highest[s] ? a[i] : highest[s];
        for (long j = 0, i = 0; j < n; j++)
            for (long s = 0; s < count; s++, i++) {
                c[s] -= y[i] != 0 ? y[i] * (a[i] - highest[s]) : 0;
                a[i] = std::exp(a[i] - highest[s]);
                sum[s] += a[i], total[s] += y[i];
            }
        for (long s = 0; s < count; s++) c[s] += total[s] ? total[s] * std::log(sum[s]) : 0, total[s] *= g[s] / sum[s];
        for (long j = 0, i = 0; j < n; j++)
            for (long s = 0; s < count; s++, i++) a[i] = a[i] * total[s] - g[s] * y[i];  // BP1 with softmax's σ'
    } else {  // c = Σ_j w_j c(a_j, y_j)
        for (long j = 0, i = 0; j < n; j++)
            for (long s = 0; s < count; s++, i++) {
                const real w = weights ? weights[j] : 1;
                c[s] += w * L::value(a[i], y[i], constants + j, n);
                a[i] = g[s] * w * L::derivative(a[i], y[i], constants + j, n);  // BP1, left factor: ∂C/∂a
            }
    }
}

// --- the steps ---
// Waits until all threads have come here.
struct Barrier {
    const long count;
    std::atomic<long> come{0};
    void wait() {
        const long all = (come.fetch_add(1) / count + 1) * count;
        for (long spins = 0; come < all; spins++) if (spins > 2000) std::this_thread::yield();
    }
};
// The share of a thread, in whole multiples of `unit`: always the same.
static Range share(long n, long unit, long thread, long threads) {
    const long units = (n + unit - 1) / unit, first = units * thread / threads, last = units * (thread + 1) / threads;
    return {std::min(n, first * unit), std::min(n, last * unit)};
}
struct Steps {
    const Batches& data;
    const long lowest, threads;  // no δ is computed below the lowest layer that is trained
    std::deque<Layer> layers;
    std::vector<double> loss_of;  // [N]: c of each sample, times ∂C/∂c
    Memory samples;               // [threads, 2, n_L, SAMPLES]: a^L and y of some samples, side by side
    Barrier barrier;
    Steps(const LayerSpec* specs, long depth, long from, const Batches& batches, long count)
        : data(batches), lowest(from), threads(count), loss_of(batches.size),
          samples(count * 2 * specs[depth - 1].n_out * SAMPLES), barrier{count} {
        for (long l = 0; l < depth; l++) layers.emplace_back(specs[l], data.size, l == 0, l > lowest);
        for (long l = 1; l < depth; l++)
            for (long r = 0; r < data.size; r++)
                layers[l].next[r] = layers[l].a_prev[r] = layers[l - 1].output() + r * layers[l - 1].width;
    }

    // What a thread does. They share the outputs of the first layer, so that each keeps its part of the largest W in
    // its cache; the rows of the batch from there to δ; and the inputs of the other W. No sum is divided among them.
    void run(long thread) {
        const Range outputs = share(layers[0].width, PANEL, thread, threads);
        for (long done = 0, step = 0; done < data.rows; done += data.size, step++) {
            const long n = std::min<long>(data.size, data.rows - done);
            const Range rows = share(n, 1, thread, threads);
            read_inputs(done, rows);
            barrier.wait();
            layers[0].forward({0, n}, outputs);  // FWD
            barrier.wait();
            for (size_t l = 1; l < layers.size(); l++) layers[l].forward(rows, {0, layers[l].width});  // FWD
            compute_losses(done, rows, thread);  // C, BP1
            for (long l = layers.size() - 1; l >= lowest; l--)
                layers[l].backward(rows, l > lowest ? layers[l - 1].delta.at : nullptr);  // BP1, BP2
            barrier.wait();
            for (long l = layers.size() - 1; l >= lowest; l--) {
                const Range inputs = l ? share(layers[l].n_in, PANEL, thread, threads) : Range{0, layers[l].n_in};
                layers[l].update(n, inputs, l ? Range{0, layers[l].width} : outputs, step == 0, thread == 0);
            }
            for (long r = 0; r < n && thread == 0; r++) data.losses[step] += loss_of[r];
            barrier.wait();
        }
    }

    // Has the rows read where they lie, and the next ones fetched meanwhile; for BLAS they are copied together.
    void read_inputs(long done, Range rows) {
        Layer& layer = layers[0];
        for (long r = rows.first; r < rows.last; r++) {
            const real* x = layer.a_prev[r] = data.x + data.order[done + r] * layer.n_in;
            layer.next[r] = data.x + data.order[std::min<long>(done + data.size + r, data.rows - 1)] * layer.n_in;
            if (!layer.blas) continue;
            std::copy_n(x, layer.n_in, layer.gathered.at + r * layer.n_in);
            layer.a_prev[r] = layer.gathered.at + r * layer.n_in;
        }
    }
    void compute_losses(long done, Range rows, long thread) {
        const Layer& last = layers.back();
        const long n = last.n_out;
        real *a = samples.at + thread * 2 * n * SAMPLES, *y = a + n * SAMPLES;
        for (long r = rows.first; r < rows.last; r += SAMPLES) {
            const long count = std::min(SAMPLES, rows.last - r), side_by_side = padded(count);
            const real* output = last.output() + r * last.width;
            real g[SAMPLES] = {};
            double c[SAMPLES];
            std::copy_n(data.grad_entries + done + r, count, g);
            transpose(output, last.width, count, n, a, side_by_side);
            transpose(data.targets + (done + r) * n, n, count, n, y, side_by_side);
            losses<Loss>(n, side_by_side, a, y, g, data.output_weights, data.constants, c);
            transpose(a, side_by_side, n, count, last.delta.at + r * last.width, last.width);
            for (long s = 0; s < count; s++) loss_of[r + s] = g[s] * c[s];
            for (long s = 0; s < count && data.outputs; s++)
                std::copy_n(output + s * last.width, n, data.outputs + (done + r + s) * n);
        }
    }
};

// Trains on the batches. Returns 0, or having changed nothing 1 without enough memory, 2 if threads cannot be started.
extern "C" int64_t train(const LayerSpec* specs, int64_t depth, int64_t lowest, const Batches* data, int64_t threads) {
    try {
        Steps steps(specs, depth, lowest, *data, threads);
        std::vector<std::thread> others;
        std::atomic<int> go{0};  // 1 once all threads are there, -1 if one could not be started
        const auto run = [&](long thread) {
            while (!go) std::this_thread::yield();
            if (go > 0) steps.run(thread);
        };
        try {
            for (long thread = 1; thread < threads; thread++) others.emplace_back(run, thread);
            go = 1;
        } catch (const std::exception&) { go = -1; }
        run(0);
        for (std::thread& other : others) other.join();
        if (go < 0) return 2;
        for (const Layer& layer : steps.layers) layer.write_back();
        return 0;
    } catch (const std::bad_alloc&) { return 1; }
}
