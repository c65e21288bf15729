package meta

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"berth/internal/boltx"
	"berth/internal/object"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

// fill makes records of every kind, n containers among them.
func (f *fixture) fill(t testing.TB, ns string, n int) {
	t.Helper()
	s := f.Scope(ns, "")
	d := putBlob(t, s, "blob of "+ns, map[string]string{"containerd.io/gc.root": "x"})
	must(s.Images().Create(t.Context(), testImage("image", d)))(t)
	must(s.Leases().Create(t.Context(), object.Lease{ID: "lease", Labels: map[string]string{"k": "v"}}))(t)
	must(s.Sandboxes().Create(t.Context(), object.Sandbox{ID: "pod"}))(t)
	f.snap(t, ns, "base", "", nil)
	must(f.snapshotter(t, ns, "lease").Prepare(t.Context(), "active", "base", nil))(t)
	if err := f.update(t.Context(), func(tx *bolt.Tx) error {
		all, err := ensureInNamespace(tx, ns, keyContainers)
		if err != nil {
			return err
		}
		for i := range n {
			ctr := testContainer(fmt.Sprintf("c%04d", i))
			ctr.Labels = map[string]string{"long": strings.Repeat("x", 500)}
			b, err := create(all, "container", ctr.ID)
			if err != nil {
				return err
			}
			if err := s.Containers().put(b, ctr); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) containers(t testing.TB, ns string) int {
	t.Helper()
	return len(must(f.Scope(ns, "").Containers().List(t.Context()))(t))
}

func TestCleanShutdown(t *testing.T) {
	f := newFixture(t)
	f.fill(t, "ns", 10)
	f.reopen(t)
	if r := f.Report(); r.Unclean || r.Damage != nil {
		t.Errorf("after a clean shutdown: %+v", r)
	}
	must(f.Scope("ns", "").Containers().Create(t.Context(), testContainer("late")))(t)
	if err := f.bolt.Close(); err != nil { // as a crash would leave it
		t.Fatal(err)
	}
	f.sched.close()
	f.backup.close()
	f.DB = nil
	f.open(t)
	if r := f.Report(); !r.Unclean || r.Damage != nil || len(r.Unreadable) != 0 {
		t.Errorf("after a crash: %+v", r)
	}
	if n := f.containers(t, "ns"); n != 11 {
		t.Errorf("%d containers", n)
	}
}

func TestUnreadableRecordsAreNamed(t *testing.T) {
	f := newFixture(t)
	f.fill(t, "ns", 3)
	if err := f.update(t.Context(), func(tx *bolt.Tx) error {
		return putString(inNamespace(tx, "ns", keyContainers, "c0001"), keyCreatedAt, "not a time")
	}); err != nil {
		t.Fatal(err)
	}
	f.close(t)
	if err := os.Remove(f.path() + cleanSuffix); err != nil {
		t.Fatal(err)
	}
	f.open(t)
	if got := f.Report().Unreadable; !slices.Equal(got, []string{"ns/containers/c0001"}) {
		t.Errorf("unreadable: %v", got)
	}
	if n := f.containers(t, "ns"); n != 2 {
		t.Errorf("%d containers are listed", n)
	}
}

// damage changes the file of a closed fixture.
func (f *fixture) damage(t testing.TB, change func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(f.path())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(f.path(), change(b), 0o600); err != nil {
		t.Fatal(err)
	}
}

// pageOf is the number of the leaf page that has the text.
func pageOf(b []byte, text string) (pages []int) {
	for at := 0; ; {
		i := bytes.Index(b[at:], []byte(text))
		if i < 0 {
			return slices.Compact(pages)
		}
		pages = append(pages, (at+i)/4096)
		at += i + 1
	}
}

func TestRestoreFromBackup(t *testing.T) {
	f := newFixture(t)
	f.fill(t, "ns", 300)
	f.close(t) // makes a backup
	f.open(t)
	must(f.Scope("ns", "").Containers().Create(t.Context(), testContainer("after-backup")))(t)
	if err := f.Scope("ns", "").Leases().Delete(t.Context(), "lease", false); err != nil {
		t.Fatal(err)
	}
	f.bolt.Close()
	f.sched.close()
	f.backup.close()
	f.DB = nil
	// Every version of the page of one container is overwritten.
	var original []byte
	f.damage(t, func(b []byte) []byte {
		original = bytes.Clone(b)
		for _, p := range pageOf(b, "c0100") {
			copy(b[p*4096+16:], bytes.Repeat([]byte{0xee}, 2000))
		}
		return b
	})
	f.open(t)
	r := f.Report()
	if r.Damage == nil || !errdefs.IsDataLoss(r.Damage) || r.Kept == "" || r.BackupTime.IsZero() || r.BadPages == 0 {
		t.Fatalf("report: %+v", r)
	}
	if kept := must(os.ReadFile(r.Kept))(t); bytes.Equal(kept, original) || len(kept) != len(original) {
		t.Error("the damaged file was not kept as it was found")
	}
	if !slices.Contains(r.Restored, "ns/containers/c0100") || len(r.Restored) > 150 {
		t.Errorf("restored from the backup: %v", r.Restored)
	}
	if len(r.Lost) != 0 {
		t.Errorf("lost: %v", r.Lost)
	}
	if n := f.containers(t, "ns"); n != 301 {
		t.Errorf("%d containers, want 301", n)
	}
	if ls := must(f.Scope("ns", "").Leases().List(t.Context()))(t); hasLease(ls, "lease") {
		t.Error("a lease that was deleted after the backup came back")
	}
	f.reopen(t)
	if r := f.Report(); r.Damage != nil || r.Unclean {
		t.Errorf("after the rescue: %+v", r)
	}
	if got, err := filepath.Glob(f.path() + ".rebuilt*"); err != nil || len(got) != 0 {
		t.Errorf("left behind: %v, %v", got, err)
	}
}

func hasLease(ls []object.Lease, id string) bool {
	return slices.ContainsFunc(ls, func(l object.Lease) bool { return l.ID == id })
}

// Without a usable backup, blobs and snapshots are adopted, and survive the
// next collection.
func TestRestoreFromStores(t *testing.T) {
	f := newFixture(t)
	ctx := t.Context()
	s := f.Scope("ns", "")
	layer := putBlob(t, s, "layer", nil)
	manifest := putBlob(t, s, `{"layers":[{"digest":"`+layer.String()+`"}]}`, map[string]string{"containerd.io/gc.ref.content.l.0": layer.String()})
	must(s.Images().Create(ctx, testImage("image", manifest)))(t)
	f.fill(t, "ns2", 0)
	f.close(t)
	for _, suffix := range []string{backupSuffix, cleanSuffix} {
		if err := os.Remove(f.path() + suffix); err != nil {
			t.Fatal(err)
		}
	}
	f.damage(t, func(b []byte) []byte { clear(b); return b })
	f.open(t)
	r := f.Report()
	if r.Damage == nil || r.BadPages == 0 {
		t.Errorf("report: %+v", r)
	}
	for _, want := range []string{"ns2/snapshots/fake/base", "ns2/snapshots/fake/active", "ns2/content/" + layer.String()} {
		if !slices.Contains(r.Adopted, want) {
			t.Errorf("%s was not adopted: %v", want, r.Adopted)
		}
	}
	must(f.Collect(ctx))(t)
	sn := f.snapshotter(t, "ns2", "")
	if info := must(sn.Stat(ctx, "active"))(t); info.Parent != "base" || info.Kind != object.SnapshotActive {
		t.Errorf("adopted: %+v", info)
	}
	if text, err := readBlobText(t, f.Scope("ns2", ""), layer); text != "layer" || err != nil {
		t.Errorf("read %q, %v", text, err)
	}
	if info := must(f.Scope("ns2", "").Content().Info(ctx, manifest))(t); info.Labels["containerd.io/gc.ref.content.l.0"] != layer.String() {
		t.Errorf("labels of the manifest: %v", info.Labels)
	}
	// The number of the next snapshot is beyond those that were found.
	must(sn.Prepare(ctx, "next", "base", nil))(t)
}

func TestTornLastTransaction(t *testing.T) {
	for _, tt := range []struct {
		name       string
		damage     func(b []byte, m boltx.Meta)
		clean      bool // mark and backup of the clean shutdown are there
		source     string
		containers int
	}{
		{"meta page after a crash", func(b []byte, m boltx.Meta) { b[m.Page*m.PageSize+16+48]++ }, false, "", 50},
		{"meta page after a clean shutdown", func(b []byte, m boltx.Meta) { b[m.Page*m.PageSize+16+48]++ }, true, "the backup, which has all that the file had", 51},
		{"root page", func(b []byte, m boltx.Meta) {
			root := int(m.Root[0]) | int(m.Root[1])<<8
			clear(b[root*4096 : (root+1)*4096])
		}, false, "", 50},
		{"root page after a clean shutdown without a backup", func(b []byte, m boltx.Meta) {
			root := int(m.Root[0]) | int(m.Root[1])<<8
			clear(b[root*4096 : (root+1)*4096])
		}, true, "the state before the last transaction", 50},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFixture(t)
			f.fill(t, "ns", 50)
			must(f.Scope("ns", "").Containers().Create(t.Context(), testContainer("last")))(t)
			f.close(t)
			if !tt.clean {
				os.Remove(f.path() + cleanSuffix)
			}
			if !strings.Contains(tt.source, "backup") {
				os.Remove(f.path() + backupSuffix)
			}
			f.damage(t, func(b []byte) []byte { tt.damage(b, boltx.ReadMetas(b)[0]); return b })
			f.open(t)
			if r := f.Report(); r.Source != tt.source || (r.Damage == nil) != (tt.source == "") {
				t.Errorf("report: %+v", r)
			}
			if n := f.containers(t, "ns"); n != tt.containers {
				t.Errorf("%d containers, want %d", n, tt.containers)
			}
		})
	}
}

func TestEmptyFile(t *testing.T) {
	f := newFixture(t)
	f.fill(t, "ns", 5)
	f.close(t)
	f.damage(t, func([]byte) []byte { return nil })
	f.open(t)
	if n := f.containers(t, "ns"); n != 5 || f.Report().Damage == nil {
		t.Errorf("%d containers from the backup, report %+v", n, f.Report())
	}
}

// A database that was lost before it had a backup is as good as a new one; but what
// the stores hold is no garbage.
func TestEmptyFileWithoutBackup(t *testing.T) {
	f := newFixture(t)
	f.close(t)
	f.open(t)
	if r := f.Report(); r.Damage != nil {
		t.Errorf("a new database is reported: %+v", r)
	}
	f.fill(t, "ns", 5)
	f.close(t)
	if err := os.Remove(f.path() + backupSuffix); err != nil {
		t.Fatal(err)
	}
	f.damage(t, func([]byte) []byte { return nil })
	f.open(t)
	r := f.Report()
	if r.Damage == nil || !slices.Contains(r.Adopted, "ns/snapshots/fake/active") {
		t.Errorf("report: %+v", r)
	}
	must(f.Collect(t.Context()))(t)
	if left := f.snapshots.keys(); len(left) != 2 {
		t.Errorf("snapshots after a collection: %v", left)
	}
}

func TestBackupInBackground(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		b := &backups{run: func() { runs.Add(1) }}
		expect := func(want int64, when string) {
			t.Helper()
			synctest.Wait()
			if got := runs.Swap(0); got != want {
				t.Errorf("%d backups %s, want %d", got, when, want)
			}
		}
		for range backupAfter {
			b.committed()
		}
		expect(0, "while much is written")
		time.Sleep(backupQuiet)
		expect(1, "after it")
		b.committed()
		time.Sleep(backupEvery)
		expect(1, "long after a single commit")
		for begin := time.Now(); time.Since(begin) < backupEvery-time.Second; time.Sleep(100 * time.Millisecond) {
			b.committed()
		}
		expect(0, "while much is written")
		for range 20 {
			b.committed()
			time.Sleep(100 * time.Millisecond)
		}
		expect(1, "when it has been written for long")
		b.close()
		if b = (&backups{run: func() {}}); b.close() {
			t.Error("a backup is due although nothing was written")
		}
	})
	b := &backups{run: func() {}}
	b.committed()
	if !b.close() {
		t.Error("no backup is due although something was written")
	}
}

// sample is a small database in every detail.
func sample(t testing.TB) []byte {
	t.Helper()
	f := newFixture(t)
	f.fill(t, "ns", 40)
	f.fill(t, "other", 3)
	f.close(t)
	b, err := os.ReadFile(f.path())
	if err != nil {
		t.Fatal(err)
	}
	m := boltx.ReadMetas(b)[0]
	return b[:int(m.Pages)*m.PageSize] // without the room to grow
}

// openBytes opens a database of these bytes, as a daemon would, and uses it.
func openBytes(t testing.TB, b []byte) {
	t.Helper()
	f := newFixture(t)
	f.close(t)
	for _, suffix := range []string{"", backupSuffix, cleanSuffix} {
		if err := os.Remove(f.path() + suffix); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(f.path(), b, 0o600); err != nil {
		t.Fatal(err)
	}
	f.open(t)
	for _, ns := range must(f.Namespaces().List(t.Context()))(t) {
		s := f.Scope(ns.Name, "")
		_ = must(s.Containers().List(t.Context()))(t)
		_ = must(s.Images().List(t.Context()))(t)
		_ = must(s.Leases().List(t.Context()))(t)
		if err := s.Content().Walk(t.Context(), func(object.BlobInfo) error { return nil }); err != nil {
			t.Errorf("walk: %v", err)
		}
	}
	if _, err := f.Scope("new", "").Images().Create(t.Context(), testImage("i", digest.FromString("x"))); err != nil {
		t.Errorf("write: %v", err)
	}
	if _, err := f.Collect(t.Context()); err != nil {
		t.Errorf("collect: %v", err)
	}
	f.close(t)
}

func TestDamagedFilesOpen(t *testing.T) {
	whole := sample(t)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 60 {
		b := bytes.Clone(whole)
		switch i % 3 {
		case 0: // flipped bits, more of them in headers
			for range 1 + random.IntN(20) {
				at := random.IntN(len(b))
				if random.IntN(2) == 0 {
					at = at&^4095 + random.IntN(64)
				}
				b[at] ^= 1 << random.IntN(8)
			}
		case 1: // a page of zeros, of noise, or of another page
			to, from := random.IntN(len(b)/4096), random.IntN(len(b)/4096)
			page := b[to*4096 : (to+1)*4096]
			switch random.IntN(3) {
			case 0:
				clear(page)
			case 1:
				for j := range page {
					page[j] = byte(random.Uint32())
				}
			case 2:
				copy(page, b[from*4096:])
			}
		case 2:
			b = b[:random.IntN(len(b))]
		}
		openBytes(t, b)
		if t.Failed() {
			t.Fatalf("attempt %d", i)
		}
	}
}

func FuzzOpen(f *testing.F) {
	whole := sample(f)
	f.Add(uint32(0), []byte{}, uint32(len(whole)))
	f.Add(uint32(4096+16), []byte{1, 2, 3}, uint32(len(whole)))
	f.Add(uint32(3*4096), []byte("\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00"), uint32(5*4096+100))
	f.Fuzz(func(t *testing.T, at uint32, patch []byte, size uint32) {
		b := bytes.Clone(whole)
		copy(b[int(at)%len(b):], patch)
		openBytes(t, b[:int(size)%(len(b)+1)])
	})
}

func BenchmarkOpen10000(b *testing.B) {
	f := newFixture(b)
	f.fill(b, "ns", 10000)
	for b.Loop() {
		b.StopTimer()
		f.close(b)
		b.StartTimer()
		f.open(b)
	}
}
