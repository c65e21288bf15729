package verify

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestVerify(t *testing.T) {
	desc := ispec.Descriptor{MediaType: ispec.MediaTypeImageManifest, Digest: digest.FromString("x"), Size: 1}
	for name, tc := range map[string]struct {
		scripts map[string]string
		max     int
		says    string // empty: it is allowed
	}{
		"none":               {},
		"allows":             {scripts: map[string]string{"a": "echo fine"}, max: 10},
		"refuses":            {scripts: map[string]string{"a": "exit 0", "b": "echo 'no signature'; exit 7"}, max: 10, says: "exit status 7: no signature"},
		"beyond the maximum": {scripts: map[string]string{"a": "exit 0", "b": "exit 7"}, max: 1},
		"no maximum":         {scripts: map[string]string{"a": "exit 0", "b": "exit 7"}, max: -1, says: "image verifier b blocked"},
		"hangs":              {scripts: map[string]string{"a": "sleep 1000 & wait"}, max: 10, says: "did not decide"},
		"child keeps pipes":  {scripts: map[string]string{"a": "sleep 1000 & exit 3"}, max: 10, says: "blocked"},
		"killed":             {scripts: map[string]string{"a": "kill -9 $$"}, max: 10, says: "killed"},
		"much output":        {scripts: map[string]string{"a": "yes | head -c 1000000; exit 1"}, max: 10, says: "(cut)"},
		"arguments": {scripts: map[string]string{"a": `[ "$*" = "-name r/i:1 -digest ` + desc.Digest.String() + ` -stdin-media-type application/vnd.oci.descriptor.v1+json" ] || { echo "$*"; exit 1; }
grep -q '"digest":"` + desc.Digest.String() + `"' || exit 2`}, max: 10},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for n, s := range tc.scripts {
				if err := os.WriteFile(filepath.Join(dir, n), []byte("#!/bin/sh\n"+s+"\n"), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			d := &Directory{Path: dir, Max: tc.max, Timeout: 5 * time.Second, Log: slog.New(slog.DiscardHandler)}
			if strings.Contains(tc.says, "did not") || strings.Contains(name, "child") {
				d.Timeout = 100 * time.Millisecond
			}
			began := time.Now()
			err := d.Verify(t.Context(), "r/i:1", desc)
			if tc.says == "" && err != nil || tc.says != "" && (!errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), tc.says)) {
				t.Errorf("%v, want %q", err, tc.says)
			}
			if time.Since(began) > 4*time.Second {
				t.Error("it took too long")
			}
		})
	}
	if err := (&Directory{Path: filepath.Join(t.TempDir(), "none")}).Verify(context.Background(), "r", desc); err != nil {
		t.Error("no directory:", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	os.WriteFile(file, nil, 0o600)
	if err := (&Directory{Path: file}).Verify(context.Background(), "r", desc); !errdefs.IsPermissionDenied(err) {
		t.Error("not a directory:", err)
	}
}
