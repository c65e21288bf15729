// Package live is the part of the vocabulary that a shim needs: mounts and
// processes. It has no dependencies: whatever a shim links is also initialised in
// the init of each container, on the path of its start. Package object has the
// same types under its own name.
package live

import "time"

// TaskStatus is the state of a process of a task. The numbers are those of
// containerd.v1.types.Status.
type TaskStatus uint8

const (
	TaskUnknown TaskStatus = iota
	TaskCreated
	TaskRunning
	TaskStopped
	TaskPaused
	TaskPausing
)

func (s TaskStatus) String() string {
	switch s {
	case TaskCreated:
		return "CREATED"
	case TaskRunning:
		return "RUNNING"
	case TaskStopped:
		return "STOPPED"
	case TaskPaused:
		return "PAUSED"
	case TaskPausing:
		return "PAUSING"
	default:
		return "UNKNOWN"
	}
}

// Process is the state of one process of a task: its init, or an exec.
type Process struct {
	ContainerID string
	// ExecID is empty for the init process.
	ExecID string
	// PID in the host's PID namespace, 0 until there is a process.
	PID    uint32
	Status TaskStatus
	IO     TaskIO
	// Exit is meaningful in TaskStopped.
	Exit Exit
}

// TaskIO names where the streams of a process lead: FIFO paths, or URIs for
// stdout and stderr (binary://, file://). Empty means /dev/null.
type TaskIO struct {
	Stdin    string
	Stdout   string
	Stderr   string
	Terminal bool
}

// Exit is how a process ended. Status is the exit code, 128+n for a signal n.
type Exit struct {
	PID    uint32
	Status uint32
	At     time.Time
}
