// Package doctor checks whether a host is fit for running containers, and says
// how to mend what is not: kernel, cgroups, limits, networking, security modules,
// disks, what earlier containers left behind, and the registries that are
// configured. It changes nothing and needs no daemon.
//
// One file holds the checks of one area; a check is a function of a Host, which
// is where files are read from, so that tests bring their own. Results come in the
// order in which a person would mend them.
package doctor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Status says how bad a result is.
type Status string

const (
	OK      Status = "ok"
	Info    Status = "info"    // good to know; nothing is wrong
	Warning Status = "warning" // some things will not work, or not well
	Problem Status = "problem" // containers, or the daemon, will not work
)

// Result is what one check found.
type Result struct {
	Area   string
	Check  string
	Status Status
	Found  string
	// Fix is what to do, empty when nothing is to be done.
	Fix string `json:",omitempty"`
}

// Host is what is looked at.
type Host struct {
	// Root is where the host's files are; "/" but for tests.
	Root string
	// DataDir and StateDir are the daemon's root and state directories.
	DataDir, StateDir string
	// Path lists the directories of programs, as in PATH.
	Path string
	// CertsDir has the configured registries, empty for none.
	CertsDir string
	// Live tells whether the daemon has a task or sandbox of that name; nil when
	// no daemon can be asked.
	Live func(namespace, id string) bool
}

// path is where a file of the host is.
func (h Host) path(name string) string { return filepath.Join(h.Root, name) }

// text is the content of a small file without its last line's end, "" when it
// cannot be read.
func (h Host) text(name string) string {
	b, _ := os.ReadFile(h.path(name)) // what cannot be read is not there
	return strings.TrimRight(string(b), "\n")
}

func (h Host) exists(name string) bool {
	_, err := os.Stat(h.path(name))
	return err == nil
}

// program is the path of a program, or empty.
func (h Host) program(name string) string {
	for _, dir := range filepath.SplitList(h.Path) {
		if st, err := os.Stat(filepath.Join(dir, name)); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return filepath.Join(dir, name)
		}
	}
	return ""
}

// exam collects the results of one area.
type exam struct {
	Host
	area    string
	results []Result
}

func (e *exam) add(check string, status Status, found, fix string) {
	e.results = append(e.results, Result{e.area, check, status, found, fix})
}

func (e *exam) ok(check, format string, args ...any) {
	e.add(check, OK, fmt.Sprintf(format, args...), "")
}

// Run makes all checks. ctx bounds those that use the network.
func Run(ctx context.Context, h Host) []Result {
	var out []Result
	for _, area := range []struct {
		name string
		run  func(context.Context, *exam)
	}{
		{"kernel", checkKernel}, {"cgroups", checkCgroups}, {"limits", checkLimits}, {"security", checkSecurity}, {"network", checkNetwork},
		{"disk", checkDisk}, {"programs", checkPrograms}, {"leftovers", checkLeftovers}, {"registries", checkRegistries},
	} {
		e := &exam{Host: h, area: area.name}
		area.run(ctx, e)
		out = append(out, e.results...)
	}
	return out
}
