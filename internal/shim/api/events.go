package api

import "google.golang.org/protobuf/reflect/protoreflect"

type TaskCreate struct {
	ContainerID, Bundle string
	Rootfs              []*Mount
	IO                  *TaskIO
	Checkpoint          string
	Pid                 uint32
}

type TaskStart struct {
	ContainerID string
	Pid         uint32
}

type TaskDelete struct {
	ContainerID     string
	Pid, ExitStatus uint32
	ExitedAt        *Timestamp
	ID              string
}

// TaskIO names where the streams of a process lead.
type TaskIO struct {
	Stdin, Stdout, Stderr string
	Terminal              bool
}

type TaskExit struct {
	ContainerID, ID string
	Pid, ExitStatus uint32
	ExitedAt        *Timestamp
}

type TaskOOM struct {
	ContainerID string
}

type TaskExecAdded struct {
	ContainerID, ExecID string
}

type TaskExecStarted struct {
	ContainerID, ExecID string
	Pid                 uint32
}

type TaskPaused struct {
	ContainerID string
}

type TaskResumed struct {
	ContainerID string
}

type TaskCheckpointed struct {
	ContainerID, Checkpoint string
}

// ForwardRequest passes an event on (containerd.services.events.ttrpc.v1).
type ForwardRequest struct {
	Envelope *Envelope
}

// Envelope is an event with its circumstances.
type Envelope struct {
	Timestamp        *Timestamp
	Namespace, Topic string
	Event            *Any
}

func (m *TaskCreate) fields() []field {
	return []field{{1, &m.ContainerID}, {2, &m.Bundle}, {3, many(&m.Rootfs)}, {4, one(&m.IO)}, {5, &m.Checkpoint}, {6, &m.Pid}}
}

func (m *TaskStart) fields() []field {
	return []field{{1, &m.ContainerID}, {2, &m.Pid}}
}

func (m *TaskDelete) fields() []field {
	return []field{{1, &m.ContainerID}, {2, &m.Pid}, {3, &m.ExitStatus}, {4, one(&m.ExitedAt)}, {5, &m.ID}}
}

func (m *TaskIO) fields() []field {
	return []field{{1, &m.Stdin}, {2, &m.Stdout}, {3, &m.Stderr}, {4, &m.Terminal}}
}

func (m *TaskExit) fields() []field {
	return []field{{1, &m.ContainerID}, {2, &m.ID}, {3, &m.Pid}, {4, &m.ExitStatus}, {5, one(&m.ExitedAt)}}
}

func (m *TaskOOM) fields() []field {
	return []field{{1, &m.ContainerID}}
}

func (m *TaskExecAdded) fields() []field {
	return []field{{1, &m.ContainerID}, {2, &m.ExecID}}
}

func (m *TaskExecStarted) fields() []field {
	return []field{{1, &m.ContainerID}, {2, &m.ExecID}, {3, &m.Pid}}
}

func (m *TaskPaused) fields() []field {
	return []field{{1, &m.ContainerID}}
}

func (m *TaskResumed) fields() []field {
	return []field{{1, &m.ContainerID}}
}

func (m *TaskCheckpointed) fields() []field {
	return []field{{1, &m.ContainerID}, {2, &m.Checkpoint}}
}

func (m *ForwardRequest) fields() []field {
	return []field{{1, one(&m.Envelope)}}
}

func (m *Envelope) fields() []field {
	return []field{{1, one(&m.Timestamp)}, {2, &m.Namespace}, {3, &m.Topic}, {4, one(&m.Event)}}
}

func (m *TaskCreate) ProtoReflect() protoreflect.Message       { return reflection{m: m} }
func (m *TaskCreate) Reset()                                   { *m = TaskCreate{} }
func (m *TaskStart) ProtoReflect() protoreflect.Message        { return reflection{m: m} }
func (m *TaskStart) Reset()                                    { *m = TaskStart{} }
func (m *TaskDelete) ProtoReflect() protoreflect.Message       { return reflection{m: m} }
func (m *TaskDelete) Reset()                                   { *m = TaskDelete{} }
func (m *TaskIO) ProtoReflect() protoreflect.Message           { return reflection{m: m} }
func (m *TaskIO) Reset()                                       { *m = TaskIO{} }
func (m *TaskExit) ProtoReflect() protoreflect.Message         { return reflection{m: m} }
func (m *TaskExit) Reset()                                     { *m = TaskExit{} }
func (m *TaskOOM) ProtoReflect() protoreflect.Message          { return reflection{m: m} }
func (m *TaskOOM) Reset()                                      { *m = TaskOOM{} }
func (m *TaskExecAdded) ProtoReflect() protoreflect.Message    { return reflection{m: m} }
func (m *TaskExecAdded) Reset()                                { *m = TaskExecAdded{} }
func (m *TaskExecStarted) ProtoReflect() protoreflect.Message  { return reflection{m: m} }
func (m *TaskExecStarted) Reset()                              { *m = TaskExecStarted{} }
func (m *TaskPaused) ProtoReflect() protoreflect.Message       { return reflection{m: m} }
func (m *TaskPaused) Reset()                                   { *m = TaskPaused{} }
func (m *TaskResumed) ProtoReflect() protoreflect.Message      { return reflection{m: m} }
func (m *TaskResumed) Reset()                                  { *m = TaskResumed{} }
func (m *TaskCheckpointed) ProtoReflect() protoreflect.Message { return reflection{m: m} }
func (m *TaskCheckpointed) Reset()                             { *m = TaskCheckpointed{} }
func (m *ForwardRequest) ProtoReflect() protoreflect.Message   { return reflection{m: m} }
func (m *ForwardRequest) Reset()                               { *m = ForwardRequest{} }
func (m *Envelope) ProtoReflect() protoreflect.Message         { return reflection{m: m} }
func (m *Envelope) Reset()                                     { *m = Envelope{} }

// Event is the body of an event; its name is the type URL.
type Event interface {
	Message
	Name() string
}

func (*TaskCreate) Name() string       { return "containerd.events.TaskCreate" }
func (*TaskStart) Name() string        { return "containerd.events.TaskStart" }
func (*TaskDelete) Name() string       { return "containerd.events.TaskDelete" }
func (*TaskExit) Name() string         { return "containerd.events.TaskExit" }
func (*TaskOOM) Name() string          { return "containerd.events.TaskOOM" }
func (*TaskExecAdded) Name() string    { return "containerd.events.TaskExecAdded" }
func (*TaskExecStarted) Name() string  { return "containerd.events.TaskExecStarted" }
func (*TaskPaused) Name() string       { return "containerd.events.TaskPaused" }
func (*TaskResumed) Name() string      { return "containerd.events.TaskResumed" }
func (*TaskCheckpointed) Name() string { return "containerd.events.TaskCheckpointed" }
