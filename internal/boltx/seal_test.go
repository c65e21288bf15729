package boltx

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// dump is everything that a database holds.
func dump(t testing.TB, db *DB) string {
	t.Helper()
	var out strings.Builder
	var each func(prefix string, b *bolt.Bucket) error
	each = func(prefix string, b *bolt.Bucket) error {
		return b.ForEach(func(k, v []byte) error {
			if v == nil {
				return each(prefix+string(k)+"/", b.Bucket(k))
			}
			fmt.Fprintf(&out, "%s%s=%x\n", prefix, k, v)
			return nil
		})
	}
	if err := db.View(func(tx *bolt.Tx) error {
		return tx.ForEach(func(name []byte, b *bolt.Bucket) error { return each(string(name)+"/", b) })
	}); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// change does something to a tree of buckets.
func change(t testing.TB, db *DB, r *rand.Rand, n int) {
	t.Helper()
	seed := r.Uint64()
	if err := db.Update(t.Context(), func(tx *bolt.Tx) error {
		r := rand.New(rand.NewPCG(seed, 1))
		top, err := tx.CreateBucketIfNotExists([]byte("v1"))
		if err != nil {
			return err
		}
		for range 1 + r.IntN(n) {
			b := top
			for range r.IntN(4) {
				if b, err = b.CreateBucketIfNotExists(fmt.Appendf(nil, "bucket%d", r.IntN(20))); err != nil {
					return err
				}
			}
			key := fmt.Appendf(nil, "bucket%d", r.IntN(20))
			switch r.IntN(6) {
			case 0:
				if b.Bucket(key) != nil {
					err = b.DeleteBucket(key)
				}
			case 1:
				err = b.Delete(fmt.Appendf(nil, "key%d", r.IntN(30)))
			default:
				err = b.Put(fmt.Appendf(nil, "key%d", r.IntN(30)), bytes.Repeat([]byte{byte(r.Uint32())}, r.IntN(1+r.IntN(9000))))
			}
			if err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// load opens a database of these bytes as the first after a crash does.
func load(t testing.TB, image []byte) (db *DB, undone uint64) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "db")
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Lock(t.Context(), path, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, undone, err = Check(f, 0); err != nil {
		t.Fatal(err)
	}
	if db, err = New(f, "test"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db, undone
}

// A power cut lets any part of what was written since the last flush reach the
// disk. What was flushed is there afterwards, and the transaction that was not
// is there as a whole or not at all.
func TestPowerCut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	db, err := Open(path, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	r := rand.New(rand.NewPCG(1, 2))
	const page = 4096
	read := func() ([]byte, string) {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return b, dump(t, db)
	}
	change(t, db, r, 200)
	flushed, before := read()
	torn, whole, commits := 0, 0, 40
	if testing.Short() {
		commits = 12
	}
	for i := range commits {
		change(t, db, r, []int{3, 10, 100, 3000}[i%4])
		written, after := read()
		flushed = append(flushed, make([]byte, len(written)-len(flushed))...)
		for attempt := range 6 {
			image, complete := bytes.Clone(flushed), true
			for at := 0; at < len(written); at += page {
				if bytes.Equal(image[at:at+page], written[at:at+page]) {
					continue
				}
				// Mostly with the meta page, and in one attempt with all of them.
				if attempt == 0 || at < 2*page && attempt < 5 || r.IntN(3) > 0 {
					copy(image[at:at+page], written[at:at+page])
				} else {
					complete = false
				}
			}
			db, undone := load(t, image)
			switch got := dump(t, db); {
			case got == before && !complete:
				if undone != 0 {
					torn++
				}
			case got == after:
				whole++
				if undone != 0 {
					t.Errorf("commit %d: transaction %d was undone, and is there", i, undone)
				}
			default:
				t.Fatalf("commit %d, attempt %d (complete %v, undone %d): neither the state before nor that after", i, attempt, complete, undone)
			}
			change(t, db, r, 20)
		}
		flushed, before = written, after
	}
	if torn < commits || whole < commits {
		t.Errorf("only %d torn and %d whole transactions were tried", torn, whole)
	}
}

// The kernel may write a page back as soon as it is written: a meta page must never
// be there without its seal, nor before the pages that it names.
func TestMetaPageIsWrittenSealed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	db, err := Open(path, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if db.sealer == nil {
		t.Fatal("bolt cannot be made to write through the sealer")
	}
	r := rand.New(rand.NewPCG(1, 2))
	change(t, db, r, 100)
	db.Alone(func() {
		tx, err := db.db.Begin(true)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.CreateBucket([]byte("other")); err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(); err != nil { // no flush follows
			t.Fatal(err)
		}
	})
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	newest := ReadMetas(image)[0]
	if s, _, whole := readSeal(image, newest); !whole || len(s.runs) == 0 || !s.holds(image, newest.PageSize) {
		t.Errorf("the seal of transaction %d is %+v, whole %v", newest.Tx, s, whole)
	}
}

// A disk that writes 512 bytes at a time may leave a meta page of which some
// sectors are old.
func TestTornMetaPage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	db, err := Open(path, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	r := rand.New(rand.NewPCG(7, 8))
	image := func() []byte {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for range 3 { // both pages have seals
		change(t, db, r, 100)
	}
	for i := range 10 {
		flushed, before := image(), dump(t, db)
		change(t, db, r, 3000)
		written, after := image(), dump(t, db)
		newest := ReadMetas(written)[0]
		torn := append(flushed, make([]byte, len(written)-len(flushed))...)
		page := torn[newest.Page*4096:]
		if i%2 == 0 { // the meta alone
			copy(page[:512], written[newest.Page*4096:])
		} else { // and the head of its seal
			copy(page[:sealOffset+sealHeader], written[newest.Page*4096:])
		}
		reopened, undone := load(t, torn)
		if got := dump(t, reopened); got != before || undone != newest.Tx {
			t.Errorf("commit %d: transaction %d of %d was undone, all of it is there: %v", i, undone, newest.Tx, got == after)
		}
	}
}

// What a large transaction has written may lie in too many places for a list.
func TestUnlistedTransaction(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	db, err := Open(path, "test")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	update := func(fn func(top *bolt.Bucket) error) {
		t.Helper()
		if err := db.Update(t.Context(), func(tx *bolt.Tx) error {
			top, err := tx.CreateBucketIfNotExists([]byte("v1"))
			if err != nil {
				return err
			}
			return fn(top)
		}); err != nil {
			t.Fatal(err)
		}
	}
	put := func(prefix string, n int) {
		t.Helper()
		update(func(top *bolt.Bucket) error {
			for i := range n { // a bucket too large to be kept in its parent has a page
				b, err := top.CreateBucket(fmt.Appendf(nil, "%s%05d", prefix, i))
				if err != nil {
					return err
				}
				if err := b.Put([]byte("k"), make([]byte, 3000)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	put("a", 8000)
	update(func(top *bolt.Bucket) error {
		for i := 0; i < 8000; i += 2 {
			if err := top.DeleteBucket(fmt.Appendf(nil, "a%05d", i)); err != nil {
				return err
			}
		}
		return nil
	})
	update(func(*bolt.Bucket) error { return nil }) // the next may use what was freed
	before := dump(t, db)
	put("b", 3500)
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	newest := ReadMetas(image)[0]
	s, _, ok := readSeal(image, newest)
	if !ok || s.unfinished || len(s.runs) != 0 {
		t.Fatalf("the seal of a large transaction: %d runs, unfinished %v, found %v", len(s.runs), s.unfinished, ok)
	}
	if reopened, undone := load(t, image); undone != 0 || dump(t, reopened) != dump(t, db) {
		t.Errorf("transaction %d was undone", undone)
	}
	// As it is between its two flushes.
	copy(image[newest.Page*newest.PageSize+sealOffset:], seal{tx: newest.Tx, unfinished: true}.marshal())
	if reopened, undone := load(t, image); undone != newest.Tx || dump(t, reopened) != before {
		t.Errorf("transaction %d was undone, want %d", undone, newest.Tx)
	}
}

// After an orderly close nothing can be torn: a seal that does not match is damage,
// and not for Check to undo.
func TestNothingIsUndoneAfterClose(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	db, err := Open(path, "test")
	if err != nil {
		t.Fatal(err)
	}
	change(t, db, rand.New(rand.NewPCG(1, 2)), 200)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	newest := ReadMetas(image)[0]
	root := uint64(newest.Root[0]) | uint64(newest.Root[1])<<8
	clear(image[root*4096 : (root+1)*4096])
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Lock(t.Context(), path, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, undone, err := Check(f, newest.Tx); !errdefs.IsDataLoss(err) || undone != 0 {
		t.Errorf("undone %d, error %v", undone, err)
	}
}

// bolt's own reader, and a writer that knows nothing of seals, take the file.
func TestOthersTakeTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	r := rand.New(rand.NewPCG(3, 4))
	var want string
	for i := range 6 {
		db, err := Open(path, "test")
		if err != nil {
			t.Fatal(err)
		}
		if got := dump(t, db); got != want {
			t.Fatalf("round %d: not what was left", i)
		}
		change(t, db, r, 100)
		want = dump(t, db)
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		other, err := bolt.Open(path, 0o600, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := other.Update(func(tx *bolt.Tx) error {
			for err := range tx.Check() {
				t.Errorf("bolt finds: %v", err)
			}
			return tx.Bucket([]byte("v1")).Put([]byte("other"), []byte{byte(i)})
		}); err != nil {
			t.Fatal(err)
		}
		other.Close()
		db, err = Open(path, "test")
		if err != nil {
			t.Fatal(err)
		}
		if now := dump(t, db); !strings.Contains(now, fmt.Sprintf("v1/other=%02x\n", i)) {
			t.Errorf("round %d: the commit of the other is missing", i)
		} else {
			want = now
		}
		db.Close()
	}
}

// FuzzCheck opens files with arbitrary pages: it finds damage or opens them.
func FuzzCheck(f *testing.F) {
	path := filepath.Join(f.TempDir(), "db")
	db, err := Open(path, "test")
	if err != nil {
		f.Fatal(err)
	}
	r := rand.New(rand.NewPCG(5, 6))
	for range 5 {
		change(f, db, r, 60)
	}
	last := db.sealer.last
	db.Close()
	whole, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	whole = whole[:int(last.Pages)*last.PageSize]
	f.Add(uint32(0), []byte{}, uint32(len(whole)))
	f.Add(uint32(last.Page*4096+sealOffset), []byte("berthsl1"), uint32(len(whole)))
	f.Add(uint32(5*4096+8), []byte("\x01\x00\xff\xff"), uint32(9*4096))
	f.Fuzz(func(t *testing.T, at uint32, patch []byte, size uint32) {
		b := bytes.Clone(whole)
		copy(b[int(at)%len(b):], patch)
		path := filepath.Join(t.TempDir(), "db")
		if err := os.WriteFile(path, b[:int(size)%(len(b)+1)], 0o600); err != nil {
			t.Fatal(err)
		}
		db, err := Open(path, "test")
		if err != nil {
			return
		}
		_ = dump(t, db)
		change(t, db, rand.New(rand.NewPCG(1, 1)), 50)
		db.Close()
	})
}
