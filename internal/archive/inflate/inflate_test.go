package inflate

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"testing"
	"testing/iotest"

	kgzip "github.com/klauspost/compress/gzip"
)

func compress(t testing.TB, b []byte, level int) []byte {
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, level)
	if err != nil {
		t.Fatal(err)
	}
	w.Name, w.Comment, w.Extra = "name", "comment", []byte("extra")
	w.Write(b)
	w.Close()
	return out.Bytes()
}

// samples are bytes of several kinds.
func samples() map[string][]byte {
	r := rand.New(rand.NewPCG(1, 2))
	random := make([]byte, 100_000)
	few := make([]byte, 300_000)
	words := []byte{}
	for i := range random {
		random[i] = byte(r.Uint32())
	}
	for i := range few {
		few[i] = "abcd"[r.IntN(4)]
	}
	skew := make([]byte, 200_000)
	for i := range skew {
		skew[i] = byte(min(r.ExpFloat64()*6, 255))
	}
	for len(words) < 400_000 {
		words = append(words, []string{"package ", "func ", "return ", "if err != nil {\n", "\t", "}\n", "x", "y := ", "context.Context"}[r.IntN(9)]...)
		if r.IntN(50) == 0 {
			words = append(words, byte(r.Uint32()), byte(r.Uint32()))
		}
	}
	far := append(append(append([]byte{}, random[:32768]...), random[:32768]...), random[:5000]...)
	short := []byte{}
	for d := 1; d < 20; d++ {
		for range 30 {
			short = append(short, random[:d]...)
		}
	}
	return map[string][]byte{
		"empty": {}, "one": {7}, "zeros": make([]byte, 1_000_000), "random": random, "few": few, "skewed": skew, "words": words, "far": far, "short": short,
	}
}

func TestRoundTrip(t *testing.T) {
	for name, data := range samples() {
		for _, level := range []int{gzip.NoCompression, gzip.BestSpeed, 6, gzip.BestCompression, gzip.HuffmanOnly} {
			z := compress(t, data, level)
			for how, r := range map[string]io.Reader{"": bytes.NewReader(z), "byte by byte": iotest.OneByteReader(bytes.NewReader(z)), "with its error": iotest.DataErrReader(bytes.NewReader(z))} {
				if how == "byte by byte" && len(z) > 20_000 {
					continue
				}
				got, err := io.ReadAll(NewReader(r))
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("%s, level %d %s: %d of %d bytes, %v", name, level, how, len(got), len(data), err)
				}
			}
		}
	}
}

func TestMembers(t *testing.T) {
	var all, z []byte
	for _, b := range samples() {
		all = append(all, b...)
		z = append(z, compress(t, b, 6)...)
	}
	got, err := io.ReadAll(NewReader(bytes.NewReader(z)))
	if err != nil || !bytes.Equal(got, all) {
		t.Errorf("%d of %d bytes, %v", len(got), len(all), err)
	}
	var next []byte
	r := NewReader(bytes.NewReader(z))
	for {
		b, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil || len(b) == 0 {
			t.Fatal(len(b), err)
		}
		next = append(next, b...)
	}
	if !bytes.Equal(next, all) {
		t.Error("Next yields other bytes")
	}
	if _, err := io.ReadAll(NewReader(bytes.NewReader(append(z, 0, 1, 2)))); !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, ErrCorrupt) {
		t.Errorf("bytes that follow: %v", err)
	}
}

func TestBroken(t *testing.T) {
	data := samples()["words"][:100_000]
	z := compress(t, data, 6)
	for _, n := range []int{0, 1, 9, 10, 30, 100, len(z) / 2, len(z) - 9, len(z) - 8, len(z) - 1} {
		if _, err := io.ReadAll(NewReader(bytes.NewReader(z[:n]))); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
	for _, at := range []int{len(z) - 1, len(z) - 8} {
		bad := bytes.Clone(z)
		bad[at] ^= 1
		if _, err := io.ReadAll(NewReader(bytes.NewReader(bad))); !errors.Is(err, ErrChecksum) {
			t.Errorf("changed at %d: %v", at, err)
		}
	}
	boom := errors.New("boom")
	got, err := io.ReadAll(NewReader(io.MultiReader(bytes.NewReader(z[:len(z)/2]), iotest.ErrReader(boom))))
	if !errors.Is(err, boom) || len(got) == 0 {
		t.Errorf("error of the source after %d bytes: %v", len(got), err)
	}
}

// gzipped puts a deflate stream into a gzip member with the trailer that the
// standard library's output asks for.
func gzipped(deflate, plain []byte) []byte {
	b := append([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0}, deflate...)
	b = binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(plain))
	return binary.LittleEndian.AppendUint32(b, uint32(len(plain)))
}

// FuzzDeflate compares with the standard library: the same bytes, and an error
// whenever it has one.
func FuzzDeflate(f *testing.F) {
	for _, b := range samples() {
		b = b[:min(len(b), 20_000)]
		for _, level := range []int{0, 1, 6, 9, flate.HuffmanOnly} {
			var out bytes.Buffer
			w, _ := flate.NewWriter(&out, level)
			w.Write(b)
			w.Close()
			f.Add(out.Bytes())
		}
	}
	f.Add([]byte{0x05, 0xe0, 0x01, 0, 0, 0, 0, 0, 0x10, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		src := bytes.NewReader(b)
		want, wantErr := io.ReadAll(io.LimitReader(flate.NewReader(src), 4<<20))
		if len(want) == 4<<20 {
			return
		}
		used := b[:len(b)-src.Len()]
		got, err := io.ReadAll(NewReader(bytes.NewReader(gzipped(used, want))))
		if wantErr == nil && (err != nil || !bytes.Equal(got, want)) {
			t.Errorf("%d bytes, %v; want %d bytes", len(got), err, len(want))
		}
		if wantErr != nil && err == nil {
			t.Errorf("no error; want %v", wantErr)
		}
		if wantErr != nil && len(got) > len(want) && !bytes.HasPrefix(got, want) {
			t.Error("other bytes before the error")
		}
	})
}

func FuzzGzip(f *testing.F) {
	f.Add(compress(f, []byte("hello hello hello"), 6))
	f.Fuzz(func(t *testing.T, b []byte) {
		var want []byte
		r, wantErr := gzip.NewReader(bytes.NewReader(b))
		if wantErr == nil {
			want, wantErr = io.ReadAll(io.LimitReader(r, 1<<20))
		}
		got, err := io.ReadAll(io.LimitReader(NewReader(bytes.NewReader(b)), 1<<20))
		if (err == nil) != (wantErr == nil) || err == nil && !bytes.Equal(got, want) {
			t.Errorf("%d bytes, %v; want %d bytes, %v", len(got), err, len(want), wantErr)
		}
	})
}

func BenchmarkInflate(b *testing.B) {
	data := bytes.Repeat(samples()["words"], 10)
	z := compress(b, data, 6)
	if f := os.Getenv("BERTH_GZIP"); f != "" { // a real layer
		z, _ = os.ReadFile(f)
	}
	for name, open := range map[string]func(io.Reader) io.Reader{
		"berth":     func(r io.Reader) io.Reader { return NewReader(r) },
		"klauspost": func(r io.Reader) io.Reader { k, _ := kgzip.NewReader(r); return k },
		"standard":  func(r io.Reader) io.Reader { k, _ := gzip.NewReader(r); return k },
	} {
		b.Run(name, func(b *testing.B) {
			buf := make([]byte, 256<<10)
			for b.Loop() {
				n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{open(bytes.NewReader(z))}, buf)
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(n)
			}
		})
	}
}
