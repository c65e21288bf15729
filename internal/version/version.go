// Package version says which Berth this is. The linker sets its variables.
package version

// Name of the product, shown with the version.
const Name = "berth"

// Set by the build; see scripts/build. They are never assigned at run time.
var (
	Version  = "v0.1.0+unknown"
	Revision = "unknown"
)
