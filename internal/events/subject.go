package events

import (
	"berth/internal/object"

	api "github.com/containerd/containerd/api/events"
	"google.golang.org/protobuf/proto"
)

// Subject is what an event of a container's record or task is about.
type Subject struct {
	Container string
	// Exec is empty when it is about the record, or the task as a whole.
	Exec string
	// Exit is the status that the process ended with, of /tasks/exit and
	// /tasks/delete.
	Exit uint32
}

// SubjectOf reads the events /containers/create, update and delete and
// /tasks/exit and delete; false for others, and for what is not sound.
func SubjectOf(e object.Event) (s Subject, ok bool) {
	sound := func(m proto.Message) bool { return proto.Unmarshal(e.Body.Value, m) == nil }
	switch e.Topic {
	case "/containers/create":
		var m api.ContainerCreate
		ok = sound(&m)
		s.Container = m.ID
	case "/containers/update":
		var m api.ContainerUpdate
		ok = sound(&m)
		s.Container = m.ID
	case "/containers/delete":
		var m api.ContainerDelete
		ok = sound(&m)
		s.Container = m.ID
	case "/tasks/exit":
		var m api.TaskExit
		ok = sound(&m)
		s = Subject{m.ContainerID, m.ID, m.ExitStatus}
		if s.Exec == s.Container {
			s.Exec = ""
		}
	case "/tasks/delete":
		var m api.TaskDelete
		ok = sound(&m)
		s = Subject{m.ContainerID, m.ID, m.ExitStatus}
	}
	return s, ok && s.Container != ""
}
