package object

import "berth/internal/object/live"

// What a shim knows as well; see package live.
type (
	Mount       = live.Mount
	ActiveMount = live.ActiveMount
	TaskStatus  = live.TaskStatus
	Process     = live.Process
	TaskIO      = live.TaskIO
	Exit        = live.Exit
)

// The states of a process of a task.
const (
	TaskUnknown = live.TaskUnknown
	TaskCreated = live.TaskCreated
	TaskRunning = live.TaskRunning
	TaskStopped = live.TaskStopped
	TaskPaused  = live.TaskPaused
	TaskPausing = live.TaskPausing
)

// ProcessInfo is a process in a container's cgroup; Info is what the runtime
// adds (the exec ID), if anything.
type ProcessInfo struct {
	PID  uint32
	Info *Any
}
