package inflate

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"testing"
	"testing/iotest"

	kgzip "github.com/klauspost/compress/gzip"
)

// samples are bytes of different nature.
func samples(t testing.TB) map[string][]byte {
	r := rand.New(rand.NewPCG(1, 2))
	random := make([]byte, 300_000)
	for i := range random {
		random[i] = byte(r.Uint32())
	}
	few := make([]byte, 500_000)
	for i := range few {
		few[i] = "aaabbc\n"[r.IntN(7)]
	}
	var text bytes.Buffer
	for i := range 60_000 {
		fmt.Fprintf(&text, "line %d of %x\n", i, r.Uint32()>>(i%30))
	}
	self, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	runs := bytes.Repeat(append(bytes.Repeat([]byte{7}, 1000), []byte("0123456789abcdefghij")...), 700)
	return map[string][]byte{
		"empty": {}, "one": {42}, "zeros": make([]byte, 1_000_000), "random": random, "few": few,
		"text": text.Bytes(), "program": self[:min(len(self), 4<<20)], "runs": runs,
	}
}

func compressed(t testing.TB, data []byte, level int) []byte {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, level)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestRoundTrip(t *testing.T) {
	for name, data := range samples(t) {
		for _, level := range []int{gzip.HuffmanOnly, 0, 1, 6, 9} {
			z := compressed(t, data, level)
			for how, src := range map[string]io.Reader{
				"whole":  bytes.NewReader(z),
				"halves": iotest.HalfReader(bytes.NewReader(z)),
				"eof":    iotest.DataErrReader(bytes.NewReader(z)),
			} {
				r, err := NewReader(src)
				if err != nil {
					t.Fatalf("%s/%d/%s: %v", name, level, how, err)
				}
				var out bytes.Buffer
				if n, err := r.WriteTo(&out); err != nil || n != int64(len(data)) || !bytes.Equal(out.Bytes(), data) {
					t.Fatalf("%s/%d/%s: %d of %d bytes, %v", name, level, how, n, len(data), err)
				}
			}
		}
	}
}

func TestSmallReads(t *testing.T) {
	data := samples(t)["text"][:100_000]
	r, err := NewReader(iotest.OneByteReader(bytes.NewReader(compressed(t, data, 6))))
	if err != nil {
		t.Fatal(err)
	}
	if err := iotest.TestReader(r, data); err != nil {
		t.Error(err)
	}
}

func TestMembers(t *testing.T) {
	a, b := samples(t)["text"], samples(t)["runs"]
	z := append(compressed(t, a, 6), compressed(t, b, 1)...)
	z = append(z, compressed(t, nil, 1)...)
	r, err := NewReader(bytes.NewReader(z))
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, append(bytes.Clone(a), b...)) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if err := r.Reset(bytes.NewReader(compressed(t, b, 9))); err != nil {
		t.Fatal(err)
	}
	if got, err = io.ReadAll(r); err != nil || !bytes.Equal(got, b) {
		t.Errorf("after Reset: %d bytes, %v", len(got), err)
	}
}

func TestHeaderFields(t *testing.T) {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Name, w.Comment, w.Extra = "name", "comment", []byte{1, 2, 3}
	w.Write([]byte("body"))
	w.Close()
	r, err := NewReader(&b)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || string(got) != "body" {
		t.Errorf("%q %v", got, err)
	}
}

// TestTruncated cuts a stream at every byte: never a wrong byte, always
// io.ErrUnexpectedEOF.
func TestTruncated(t *testing.T) {
	data := samples(t)["text"][:3000]
	for _, level := range []int{0, 1, 6} {
		z := compressed(t, data, level)
		step := 1
		if testing.Short() {
			step = 7
		}
		for n := 0; n < len(z); n += step {
			got, err := all(z[:n])
			if !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("level %d cut at %d of %d: %v", level, n, len(z), err)
			}
			if !bytes.HasPrefix(data, got) {
				t.Fatalf("level %d cut at %d: wrong bytes", level, n)
			}
		}
	}
}

func TestCorrupt(t *testing.T) {
	z := compressed(t, samples(t)["text"][:3000], 6)
	for name, change := range map[string]func(z []byte){
		"magic":    func(z []byte) { z[0] = 0 },
		"method":   func(z []byte) { z[2] = 7 },
		"flags":    func(z []byte) { z[3] = 0x80 },
		"checksum": func(z []byte) { z[len(z)-5]++ },
		"size":     func(z []byte) { z[len(z)-1]++ },
		"block":    func(z []byte) { z[10] |= 6 },
	} {
		bad := bytes.Clone(z)
		change(bad)
		if _, err := all(bad); !errors.Is(err, ErrCorrupt) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := all(append(bytes.Clone(z), "garbage!!!"...)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("garbage behind the end: %v", err)
	}
}

func TestSourceError(t *testing.T) {
	broken := errors.New("broken")
	z := compressed(t, samples(t)["random"], 6)
	r, err := NewReader(io.MultiReader(bytes.NewReader(z[:1000]), iotest.ErrReader(broken)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, r); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
}

func all(z []byte) ([]byte, error) {
	r, err := NewReader(bytes.NewReader(z))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// FuzzDeflate wants the same bytes as the standard library, and an error when
// that has one.
func FuzzDeflate(f *testing.F) {
	for _, data := range samples(f) {
		for _, level := range []int{0, 1, 6, gzip.HuffmanOnly} {
			z := compressed(f, data[:min(len(data), 2000)], level)
			f.Add(z[10 : len(z)-8])
		}
	}
	f.Add([]byte{0x05, 0xc0, 0x81, 0, 0, 0, 0, 0, 0x10, 0xff})
	f.Fuzz(func(t *testing.T, z []byte) {
		want, wantErr := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(z)), 8<<20))
		d := new(decoder)
		d.reset(bytes.NewReader(z))
		var got []byte
		var err error
		for err == nil && d.state != stateDone && len(got) < 8<<20 {
			before := d.o
			if before >= historySize+outputSize {
				before = historySize
			}
			err = d.step()
			got = append(got, d.out[before:d.o]...)
		}
		if len(want) == 8<<20 {
			return
		}
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("we say %v, the standard library %v", err, wantErr)
		}
		if err == nil && !bytes.Equal(got, want) {
			t.Fatalf("%d bytes that differ from the right %d", len(got), len(want))
		}
		if !bytes.HasPrefix(want, got) && !bytes.HasPrefix(got, want) {
			t.Fatal("the bytes before the error differ")
		}
	})
}

func benchmark(b *testing.B, open func(io.Reader) (io.Reader, error)) {
	for _, name := range []string{"program", "text"} {
		data := samples(b)[name]
		for _, level := range []int{1, 6, 9} {
			z := compressed(b, data, level)
			b.Run(fmt.Sprintf("%s/%d", name, level), func(b *testing.B) {
				b.SetBytes(int64(len(data)))
				for b.Loop() {
					r, err := open(bytes.NewReader(z))
					if err != nil {
						b.Fatal(err)
					}
					if n, err := io.Copy(discard{}, r); err != nil || n != int64(len(data)) {
						b.Fatal(n, err)
					}
				}
			})
		}
	}
}

// discard has no ReadFrom.
type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

func BenchmarkInflate(b *testing.B) {
	z := new(Reader)
	benchmark(b, func(r io.Reader) (io.Reader, error) { return z, z.Reset(r) })
}

func BenchmarkKlauspost(b *testing.B) {
	z := new(kgzip.Reader)
	benchmark(b, func(r io.Reader) (io.Reader, error) { return z, z.Reset(r) })
}
