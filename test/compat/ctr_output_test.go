package compat

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/leases"
)

// What both programs print of the same daemon is the same, byte for byte: scripts
// cut columns.
func TestCtrOutputs(t *testing.T) {
	addr := daemon(t)
	c, ctx := connect(t, addr)
	img := image(t, c, ctx)
	run := func(program string, args ...string) (string, error) {
		cmd := exec.Command(filepath.Join(program, "ctr"), append([]string{"-a", addr, "-n", "outputs"}, args...)...)
		var errs bytes.Buffer
		cmd.Stderr = &errs
		out, err := cmd.Output()
		if err != nil {
			t.Logf("ctr %s: %v: %s", strings.Join(args, " "), err, errs.String())
		}
		return string(out), err
	}
	archive := archiveOf(t)
	for _, args := range [][]string{
		{"images", "import", archive.Name()},
		{"run", "-d", "--null-io", "--label", "b=2", "--label", "a=1", img.Name(), "c1", "sleep", "1000"},
		{"containers", "create", img.Name(), "c2", "true"},
		{"images", "label", img.Name(), "z=1", "y=2"},
		{"leases", "create", "--id", "l1", "--expires", "1h", "x=y"},
		{"namespaces", "create", "other", "k=v"},
		{"snapshots", "prepare", "work"},
	} {
		if _, err := run(oursBin, args...); err != nil {
			t.Fatal(err)
		}
	}
	defer run(oursBin, "tasks", "rm", "-f", "c1")
	// What the import has replaced is collected now, not between two listings.
	garbage, err := c.LeasesService().Create(ctx, leases.WithID("garbage"))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.LeasesService().Delete(ctx, garbage, leases.SynchronousDelete); err != nil {
		t.Fatal(err)
	}
	sizes := regexp.MustCompile(`[0-9.]+ [KM]?i?B`) // of a container that is writing
	for _, line := range []string{
		"containers ls", "containers ls -q", "containers ls labels.a==1", "containers info c1", "containers info --spec c1",
		"tasks ls", "tasks ls -q", "tasks ps c1", "images ls", "images ls -q", "images check", "content ls", "content ls -q", "content active",
		"leases ls", "leases ls -q", "namespaces ls", "namespaces ls -q", "snapshots ls", "snapshots tree", "snapshots info work", "snapshots usage",
		"snapshots mounts /mnt work", "plugins ls", "plugins ls -q", "plugins ls -d id==overlayfs", "oci spec", "info", "sandboxes ls", "deprecations list",
		"content ls labels.x==y", "images ls name~=busybox", "containers label c1 b=", "images label " + img.Name() + " z=", "snapshots label work q=1",
	} {
		args := strings.Fields(line)
		ours, ourErr := run(oursBin, args...)
		theirs, theirErr := run(peerBin, args...)
		if (ourErr == nil) != (theirErr == nil) {
			t.Errorf("ctr %s: ours %v, theirs %v", line, ourErr, theirErr)
		}
		if line == "snapshots usage" {
			ours, theirs = sizes.ReplaceAllString(ours, "N"), sizes.ReplaceAllString(theirs, "N")
		}
		if strings.Contains(line, " label ") {
			ours, theirs = sorted(ours), sorted(theirs) // theirs has them in any order
		}
		if ours != theirs {
			t.Errorf("ctr %s prints\n%s\ntheirs prints\n%s", line, ours, theirs)
		}
	}
}

// sorted is a line of labels in their order.
func sorted(labels string) string {
	list := strings.Split(strings.TrimSpace(labels), ",")
	slices.Sort(list)
	return strings.Join(list, ",")
}
