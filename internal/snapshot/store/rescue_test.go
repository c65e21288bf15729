package store

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"berth/internal/boltx"
	"berth/internal/object"
)

// filled makes a store with n snapshots and closes it.
func filled(t *testing.T, n int) (root string) {
	t.Helper()
	root = t.TempDir()
	s, err := Open(root, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if _, err := s.Create(t.Context(), object.SnapshotActive, fmt.Sprintf("key-%04d", i), "", map[string]string{"k": "v"}, mkdir); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return root
}

// A damaged database costs the records that cannot be read, and no files.
func TestDamagedDatabase(t *testing.T) {
	const n = 100
	root := filled(t, n)
	path := filepath.Join(root, databaseName)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// Every third record: with labels, each has a page of its own.
	leaves := 0
	for page := 2; (page+1)*4096 <= len(b); page++ {
		p := b[page*4096:]
		if binary.LittleEndian.Uint64(p) == uint64(page) && p[8] == 2 && binary.LittleEndian.Uint16(p[10:]) == 5 {
			if leaves++; page%3 == 0 {
				p[16+4+3] = 0xff // where its first element is
			}
		}
	}
	if leaves < 10 {
		t.Fatalf("only %d leaves were found", leaves)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	for round := range 2 {
		s, err := Open(root, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		if (s.Rescued() != nil) != (round == 0) {
			t.Errorf("round %d: rescued: %v", round, s.Rescued())
		}
		found := 0
		if err := s.Walk(t.Context(), func(Snapshot) error { found++; return nil }); err != nil {
			t.Error(err)
		}
		if found >= n+round || found < n/4 {
			t.Errorf("round %d: %d of %d snapshots were saved", round, found, n)
		}
		if err := s.Cleanup(t.Context()); err != nil {
			t.Error(err)
		}
		if names, err := dirNames(filepath.Join(root, "snapshots")); err != nil || len(names) != n+round {
			t.Errorf("round %d: %d directories are left, %v", round, len(names), err)
		}
		snap, err := s.Create(t.Context(), object.SnapshotActive, fmt.Sprintf("new-%d", round), "", nil, mkdir)
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprint(n + 1 + round); snap.ID != want {
			t.Errorf("the new one has the identifier %s, want %s", snap.ID, want)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Whatever is in the file, the store opens and works.
func TestAnyDatabaseOpens(t *testing.T) {
	root := filled(t, 60)
	path := filepath.Join(root, databaseName)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	used := int(boltx.ReadMetas(whole)[0].Pages) * 4096
	rescued := 0
	for i := range 30 {
		b := append([]byte(nil), whole...)
		switch i % 3 {
		case 0:
			for range 1 + r.IntN(20) {
				b[r.IntN(used)&^4095+r.IntN(64)] ^= 1 << r.IntN(8)
			}
		case 1:
			page := b[r.IntN(used/4096)*4096:][:4096]
			for j := range page {
				page[j] = byte(r.Uint32())
			}
		case 2:
			b = b[:r.IntN(used)]
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(root, time.Now)
		if err != nil {
			t.Fatalf("attempt %d: %v", i, err)
		}
		if s.Rescued() != nil {
			rescued++
		}
		if _, err := s.Create(t.Context(), object.SnapshotActive, "another", "", nil, mkdir); err != nil {
			t.Errorf("attempt %d: %v", i, err)
		}
		if _, err := s.Remove(t.Context(), "another"); err != nil {
			t.Errorf("attempt %d: %v", i, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if rescued == 0 {
		t.Error("no file was found to be damaged")
	}
}
