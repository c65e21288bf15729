// Package version is the one place that says what this build is.
package version

import "runtime/debug"

// Name of the project; it stands where containerd prints its package path.
const Name = "berth"

// Version is set when a release is linked:
//
//	-ldflags "-X berth/internal/version.Version=v1.2.3 -X berth/internal/version.revision=…"
var (
	Version  = "v0.1.0-dev"
	revision string
)

// Revision is the commit of the sources, empty when it is not known; ".m" at
// its end says that there were changes on top of it.
func Revision() string {
	if revision != "" {
		return revision
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	var rev, modified string
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			rev = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			modified = ".m"
		}
	}
	return rev + modified
}
