package live

import "time"

// Mount is one mount(2), or one that a mount handler understands.
type Mount struct {
	Type    string
	Source  string
	Target  string
	Options []string
}

// ActiveMount is a mount that an activation has performed, so that later ones
// can be made of it.
type ActiveMount struct {
	Mount
	MountedAt time.Time
	// MountPoint is where it is, or a link to the device that it has become.
	MountPoint string
	// Data is what the mount's handler tells of it.
	Data map[string]string
}
