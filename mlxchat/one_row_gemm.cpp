// One row times a matrix, in place of OpenBLAS's cblas_sgemm for processors with AVX2.
//
// Goes before OpenBLAS among the libraries in which MLX looks for it (see one_row_gemm.py). A product
// with one row reads each weight once; OpenBLAS copies the whole matrix before it multiplies.

typedef void Gemm(int, int, int, int, int, int, float, const float*, int, const float*, int, float,
                  float*, int);
typedef void Gemv(int, int, int, int, float, const float*, int, const float*, int, float, float*,
                  int);

enum { kRowMajor = 101, kPlain = 111, kTransposed = 112 };
// Larger matrices are worth several threads, which OpenBLAS has.
static const long kMostWeights = 1 << 20;
static Gemm* gemm;
static Gemv* gemv;

static void store(float sum, float alpha, float beta, float* y) {
  *y = beta == 0 ? alpha * sum : alpha * sum + beta * *y;
}

// y = alpha * W @ x + beta * y, where W is (m, k) and its rows are `stride` apart. Four rows at once
// read x once for all of them.
static void multiply(long m, long k, float alpha, const float* w, long stride, const float* x,
                     float beta, float* y) {
  long i = 0;
  for (; i + 4 <= m; i += 4) {
    const float *a = w + i * stride, *b = a + stride, *c = b + stride, *d = c + stride;
    float sums[4] = {0, 0, 0, 0};
    for (long j = 0; j < k; j++) {
      sums[0] += a[j] * x[j];
      sums[1] += b[j] * x[j];
      sums[2] += c[j] * x[j];
      sums[3] += d[j] * x[j];
    }
    for (int row = 0; row < 4; row++) store(sums[row], alpha, beta, y + i + row);
  }
  for (; i < m; i++) {
    float sum = 0;
    for (long j = 0; j < k; j++) sum += w[i * stride + j] * x[j];
    store(sum, alpha, beta, y + i);
  }
}

static void multiply_any(int m, int k, float alpha, const float* w, int stride, const float* x,
                         float beta, float* y) {
  if ((long)m * k <= kMostWeights)
    multiply(m, k, alpha, w, stride, x, beta, y);
  else
    gemv(kRowMajor, kPlain, m, k, alpha, w, stride, x, 1, beta, y, 1);
}

extern "C" void mlxchat_hand_on(Gemm* to_gemm, Gemv* to_gemv) {
  gemm = to_gemm;
  gemv = to_gemv;
}

extern "C" void cblas_sgemm(int order, int trans_a, int trans_b, int m, int n, int k, float alpha,
                            const float* a, int lda, const float* b, int ldb, float beta, float* c,
                            int ldc) {
  bool is_plain = order == kRowMajor && trans_a == kPlain;
  if (is_plain && trans_b == kPlain && n == 1 && ldb == 1 && ldc == 1)
    multiply_any(m, k, alpha, a, lda, b, beta, c);
  else if (is_plain && trans_b == kTransposed && m == 1)
    multiply_any(n, k, alpha, b, ldb, a, beta, c);
  else
    gemm(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
