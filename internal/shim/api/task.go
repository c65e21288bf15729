package api

import "google.golang.org/protobuf/reflect/protoreflect"

// Mount is one mount of a root filesystem.
type Mount struct {
	Type, Source, Target string
	Options              []string
}

// CreateTaskRequest asks for a container.
type CreateTaskRequest struct {
	ID, Bundle                                          string
	Rootfs                                              []*Mount
	Terminal                                            bool
	Stdin, Stdout, Stderr, Checkpoint, ParentCheckpoint string
	Options                                             *Any
}

type CreateTaskResponse struct {
	Pid uint32
}

type DeleteRequest struct {
	ID, ExecID string
}

type DeleteResponse struct {
	Pid, ExitStatus uint32
	ExitedAt        *Timestamp
}

// ExecProcessRequest adds a process to a container.
type ExecProcessRequest struct {
	ID, ExecID            string
	Terminal              bool
	Stdin, Stdout, Stderr string
	Spec                  *Any
}

type ResizePtyRequest struct {
	ID, ExecID    string
	Width, Height uint32
}

type StateRequest struct {
	ID, ExecID string
}

type StateResponse struct {
	ID, Bundle            string
	Pid, Status           uint32
	Stdin, Stdout, Stderr string
	Terminal              bool
	ExitStatus            uint32
	ExitedAt              *Timestamp
	ExecID                string
}

type KillRequest struct {
	ID, ExecID string
	Signal     uint32
	All        bool
}

type CloseIORequest struct {
	ID, ExecID string
	Stdin      bool
}

type PidsRequest struct {
	ID string
}

type PidsResponse struct {
	Processes []*ProcessInfo
}

// ProcessInfo is a process of a container; Info, if any, is a ProcessDetails.
type ProcessInfo struct {
	Pid  uint32
	Info *Any
}

type CheckpointTaskRequest struct {
	ID, Path string
	Options  *Any
}

// UpdateTaskRequest changes the limits of a container: Resources is an OCI LinuxResources in JSON.
type UpdateTaskRequest struct {
	ID          string
	Resources   *Any
	Annotations map[string]string
}

type StartRequest struct {
	ID, ExecID string
}

type StartResponse struct {
	Pid uint32
}

type WaitRequest struct {
	ID, ExecID string
}

type WaitResponse struct {
	ExitStatus uint32
	ExitedAt   *Timestamp
}

type StatsRequest struct {
	ID string
}

type StatsResponse struct {
	Stats *Any
}

type ConnectRequest struct {
	ID string
}

type ConnectResponse struct {
	ShimPid, TaskPid uint32
	Version          string
}

type ShutdownRequest struct {
	ID  string
	Now bool
}

type PauseRequest struct {
	ID string
}

type ResumeRequest struct {
	ID string
}

func (m *Mount) fields() []field {
	return []field{{1, &m.Type}, {2, &m.Source}, {3, &m.Target}, {4, &m.Options}}
}

func (m *CreateTaskRequest) fields() []field {
	return []field{{1, &m.ID}, {2, &m.Bundle}, {3, many(&m.Rootfs)}, {4, &m.Terminal}, {5, &m.Stdin}, {6, &m.Stdout}, {7, &m.Stderr}, {8, &m.Checkpoint}, {9, &m.ParentCheckpoint}, {10, one(&m.Options)}}
}

func (m *CreateTaskResponse) fields() []field {
	return []field{{1, &m.Pid}}
}

func (m *DeleteRequest) fields() []field {
	return []field{{1, &m.ID}, {2, &m.ExecID}}
}

func (m *DeleteResponse) fields() []field {
	return []field{{1, &m.Pid}, {2, &m.ExitStatus}, {3, one(&m.ExitedAt)}}
}

func (m *ExecProcessRequest) fields() []field {
	return []field{{1, &m.ID}, {2, &m.ExecID}, {3, &m.Terminal}, {4, &m.Stdin}, {5, &m.Stdout}, {6, &m.Stderr}, {7, one(&m.Spec)}}
}

func (m *ResizePtyRequest) fields() []field {
	return []field{{1, &m.ID}, {2, &m.ExecID}, {3, &m.Width}, {4, &m.Height}}
}

func (m *StateRequest) fields() []field {
	return []field{{1, &m.ID}, {2, &m.ExecID}}
}

func (m *StateResponse) fields() []field {
	return []field{{1, &m.ID}, {2, &m.Bundle}, {3, &m.Pid}, {4, &m.Status}, {5, &m.Stdin}, {6, &m.Stdout}, {7, &m.Stderr}, {8, &m.Terminal}, {9, &m.ExitStatus}, {10, one(&m.ExitedAt)}, {11, &m.ExecID}}
}

func (m *KillRequest) fields() []field {
	return []field{{1, &m.ID}, {2, &m.ExecID}, {3, &m.Signal}, {4, &m.All}}
}

func (m *CloseIORequest) fields() []field {
	return []field{{1, &m.ID}, {2, &m.ExecID}, {3, &m.Stdin}}
}

func (m *PidsRequest) fields() []field {
	return []field{{1, &m.ID}}
}

func (m *PidsResponse) fields() []field {
	return []field{{1, many(&m.Processes)}}
}

func (m *ProcessInfo) fields() []field {
	return []field{{1, &m.Pid}, {2, one(&m.Info)}}
}

func (m *CheckpointTaskRequest) fields() []field {
	return []field{{1, &m.ID}, {2, &m.Path}, {3, one(&m.Options)}}
}

func (m *UpdateTaskRequest) fields() []field {
	return []field{{1, &m.ID}, {2, one(&m.Resources)}, {3, &m.Annotations}}
}

func (m *StartRequest) fields() []field {
	return []field{{1, &m.ID}, {2, &m.ExecID}}
}

func (m *StartResponse) fields() []field {
	return []field{{1, &m.Pid}}
}

func (m *WaitRequest) fields() []field {
	return []field{{1, &m.ID}, {2, &m.ExecID}}
}

func (m *WaitResponse) fields() []field {
	return []field{{1, &m.ExitStatus}, {2, one(&m.ExitedAt)}}
}

func (m *StatsRequest) fields() []field {
	return []field{{1, &m.ID}}
}

func (m *StatsResponse) fields() []field {
	return []field{{1, one(&m.Stats)}}
}

func (m *ConnectRequest) fields() []field {
	return []field{{1, &m.ID}}
}

func (m *ConnectResponse) fields() []field {
	return []field{{1, &m.ShimPid}, {2, &m.TaskPid}, {3, &m.Version}}
}

func (m *ShutdownRequest) fields() []field {
	return []field{{1, &m.ID}, {2, &m.Now}}
}

func (m *PauseRequest) fields() []field {
	return []field{{1, &m.ID}}
}

func (m *ResumeRequest) fields() []field {
	return []field{{1, &m.ID}}
}

func (m *Mount) ProtoReflect() protoreflect.Message                 { return reflection{m: m} }
func (m *Mount) Reset()                                             { *m = Mount{} }
func (m *CreateTaskRequest) ProtoReflect() protoreflect.Message     { return reflection{m: m} }
func (m *CreateTaskRequest) Reset()                                 { *m = CreateTaskRequest{} }
func (m *CreateTaskResponse) ProtoReflect() protoreflect.Message    { return reflection{m: m} }
func (m *CreateTaskResponse) Reset()                                { *m = CreateTaskResponse{} }
func (m *DeleteRequest) ProtoReflect() protoreflect.Message         { return reflection{m: m} }
func (m *DeleteRequest) Reset()                                     { *m = DeleteRequest{} }
func (m *DeleteResponse) ProtoReflect() protoreflect.Message        { return reflection{m: m} }
func (m *DeleteResponse) Reset()                                    { *m = DeleteResponse{} }
func (m *ExecProcessRequest) ProtoReflect() protoreflect.Message    { return reflection{m: m} }
func (m *ExecProcessRequest) Reset()                                { *m = ExecProcessRequest{} }
func (m *ResizePtyRequest) ProtoReflect() protoreflect.Message      { return reflection{m: m} }
func (m *ResizePtyRequest) Reset()                                  { *m = ResizePtyRequest{} }
func (m *StateRequest) ProtoReflect() protoreflect.Message          { return reflection{m: m} }
func (m *StateRequest) Reset()                                      { *m = StateRequest{} }
func (m *StateResponse) ProtoReflect() protoreflect.Message         { return reflection{m: m} }
func (m *StateResponse) Reset()                                     { *m = StateResponse{} }
func (m *KillRequest) ProtoReflect() protoreflect.Message           { return reflection{m: m} }
func (m *KillRequest) Reset()                                       { *m = KillRequest{} }
func (m *CloseIORequest) ProtoReflect() protoreflect.Message        { return reflection{m: m} }
func (m *CloseIORequest) Reset()                                    { *m = CloseIORequest{} }
func (m *PidsRequest) ProtoReflect() protoreflect.Message           { return reflection{m: m} }
func (m *PidsRequest) Reset()                                       { *m = PidsRequest{} }
func (m *PidsResponse) ProtoReflect() protoreflect.Message          { return reflection{m: m} }
func (m *PidsResponse) Reset()                                      { *m = PidsResponse{} }
func (m *ProcessInfo) ProtoReflect() protoreflect.Message           { return reflection{m: m} }
func (m *ProcessInfo) Reset()                                       { *m = ProcessInfo{} }
func (m *CheckpointTaskRequest) ProtoReflect() protoreflect.Message { return reflection{m: m} }
func (m *CheckpointTaskRequest) Reset()                             { *m = CheckpointTaskRequest{} }
func (m *UpdateTaskRequest) ProtoReflect() protoreflect.Message     { return reflection{m: m} }
func (m *UpdateTaskRequest) Reset()                                 { *m = UpdateTaskRequest{} }
func (m *StartRequest) ProtoReflect() protoreflect.Message          { return reflection{m: m} }
func (m *StartRequest) Reset()                                      { *m = StartRequest{} }
func (m *StartResponse) ProtoReflect() protoreflect.Message         { return reflection{m: m} }
func (m *StartResponse) Reset()                                     { *m = StartResponse{} }
func (m *WaitRequest) ProtoReflect() protoreflect.Message           { return reflection{m: m} }
func (m *WaitRequest) Reset()                                       { *m = WaitRequest{} }
func (m *WaitResponse) ProtoReflect() protoreflect.Message          { return reflection{m: m} }
func (m *WaitResponse) Reset()                                      { *m = WaitResponse{} }
func (m *StatsRequest) ProtoReflect() protoreflect.Message          { return reflection{m: m} }
func (m *StatsRequest) Reset()                                      { *m = StatsRequest{} }
func (m *StatsResponse) ProtoReflect() protoreflect.Message         { return reflection{m: m} }
func (m *StatsResponse) Reset()                                     { *m = StatsResponse{} }
func (m *ConnectRequest) ProtoReflect() protoreflect.Message        { return reflection{m: m} }
func (m *ConnectRequest) Reset()                                    { *m = ConnectRequest{} }
func (m *ConnectResponse) ProtoReflect() protoreflect.Message       { return reflection{m: m} }
func (m *ConnectResponse) Reset()                                   { *m = ConnectResponse{} }
func (m *ShutdownRequest) ProtoReflect() protoreflect.Message       { return reflection{m: m} }
func (m *ShutdownRequest) Reset()                                   { *m = ShutdownRequest{} }
func (m *PauseRequest) ProtoReflect() protoreflect.Message          { return reflection{m: m} }
func (m *PauseRequest) Reset()                                      { *m = PauseRequest{} }
func (m *ResumeRequest) ProtoReflect() protoreflect.Message         { return reflection{m: m} }
func (m *ResumeRequest) Reset()                                     { *m = ResumeRequest{} }
