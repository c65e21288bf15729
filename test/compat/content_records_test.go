package compat

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// asked makes of a client's constructor and a method what askBoth calls.
func asked[C any, Req, Resp proto.Message](client func(grpc.ClientConnInterface) C, method func(C, context.Context, Req, ...grpc.CallOption) (Resp, error)) func(grpc.ClientConnInterface) func(context.Context, Req, ...grpc.CallOption) (Resp, error) {
	return func(conn grpc.ClientConnInterface) func(context.Context, Req, ...grpc.CallOption) (Resp, error) {
		return func(ctx context.Context, req Req, opts ...grpc.CallOption) (Resp, error) {
			return method(client(conn), ctx, req, opts...)
		}
	}
}

// gathered puts what a stream sends into one message.
func gathered[Req, Part, Whole proto.Message, Stream interface{ Recv() (Part, error) }](open func(context.Context, Req, ...grpc.CallOption) (Stream, error), whole Whole, add func(whole Whole, part Part)) func(context.Context, Req, ...grpc.CallOption) (Whole, error) {
	return func(ctx context.Context, req Req, opts ...grpc.CallOption) (Whole, error) {
		s, err := open(ctx, req, opts...)
		if err != nil {
			return whole, err
		}
		for {
			part, err := s.Recv()
			if errors.Is(err, io.EOF) {
				return whole, nil
			}
			if err != nil {
				return whole, err
			}
			add(whole, part)
		}
	}
}

// collectOnDemand keeps the collector from running but when a deletion waits for it.
// It goes on in the table of the scheduler that startOne writes.
const collectOnDemand = "mutation_threshold = 0\ndeletion_threshold = 0\n"

// contentPair asks both about content.
type contentPair struct {
	*testing.T
	*twoDaemons
	choices
	namespaces []string
	bodies     []string
}

// TestContentRecords compares content and ingests where namespaces share them,
// and where they do not but for one.
func TestContentRecords(t *testing.T) {
	for policy, seed := range map[string]uint64{"shared": 21, "isolated": 22} {
		t.Run(policy, func(t *testing.T) {
			b := startBoth(t, collectOnDemand+"[plugins.'io.containerd.metadata.v1.bolt']\ncontent_sharing_policy = '"+policy+"'\n")
			p := contentPair{t, b, choices{rand.New(rand.NewPCG(seed, 1))}, []string{"a", "b", "open"},
				[]string{"", "hello", "hello, world", "x", strings.Repeat("long", 100<<10)}}
			for _, ns := range p.namespaces {
				labels := map[string]string{"containerd.io/namespace.shareable": "true"}
				if ns != "open" {
					labels = nil
				}
				askBoth(t, b, t.Context(), "create", asked(namespacesapi.NewNamespacesClient, namespacesapi.NamespacesClient.Create), &namespacesapi.CreateNamespaceRequest{Namespace: &namespacesapi.Namespace{Name: ns, Labels: labels}})
				p.lease(ns)
			}
			for range 400 {
				p.step()
			}
			t.Logf("%d calls, %d differences", b.calls, b.bad)
		})
	}
}

func (p contentPair) lease(ns string) {
	askBoth(p.T, p.twoDaemons, namespaced(p.T, ns), "lease", asked(leasesapi.NewLeasesClient, leasesapi.LeasesClient.Create), &leasesapi.CreateRequest{ID: "l"})
}

func (p contentPair) digest() string {
	return pick(p.choices, digest.FromString(pick(p.choices, p.bodies...)).String(), digest.FromString(pick(p.choices, p.bodies...)).String(),
		digest.FromString("hello").String(), digest.FromString("none").String(), "bad", "", "sha256:1", digest.SHA512.FromString("hello").String())
}

func (p contentPair) ref() string {
	return pick(p.choices, "r", "r", "r", "s", "a/b", "q", "h", "r", "s", "a/b", "q", "h", "")
}

func (p contentPair) filters() []string {
	if p.IntN(3) > 0 {
		return nil
	}
	return []string{pick(p.choices, "labels.k==v", "labels.k!=v", `labels."a.b/c"==1`, "labels.other", "ref==r", "ref~=r", "ref", "ref!=r", "digest~=a", "digest", "labels", // theirs knows no size
		"", "==", "nothing", "total==5", "ref.x", "digest=="+digest.FromString("hello").String(), "labels.none!=x")}
}

func (p contentPair) step() {
	t, b, before := p.T, p.twoDaemons, p.bad
	ns := pick(p.choices, p.namespaces...)
	ctx := namespaced(t, ns)
	content := contentapi.NewContentClient
	switch p.IntN(12) {
	case 0:
		askBoth(t, b, ctx, "info", asked(content, contentapi.ContentClient.Info), &contentapi.InfoRequest{Digest: p.digest()})
	case 1:
		info := &contentapi.Info{Digest: p.digest(), Labels: p.labels(), Size: pick(p.choices, int64(0), 7)}
		askBoth(t, b, ctx, "update", asked(content, contentapi.ContentClient.Update), &contentapi.UpdateRequest{Info: info,
			UpdateMask: p.mask("labels", "labels.k", "labels.k", "labels.a.b/c", "labels.none", "labels.", "size", "digest", "created_at", "", "Labels")})
		askBoth(t, b, ctx, "info after the update", asked(content, contentapi.ContentClient.Info), &contentapi.InfoRequest{Digest: info.Digest})
	case 2:
		p.lists(ctx)
	case 3:
		askBoth(t, b, ctx, "delete", asked(content, contentapi.ContentClient.Delete), &contentapi.DeleteContentRequest{Digest: p.digest()})
	case 4, 5:
		req := &contentapi.ReadContentRequest{Digest: p.digest(), Offset: pick(p.choices, int64(0), 0, 1, 3, 5, 6, 1000, -1), Size: pick(p.choices, int64(0), 0, 1, 3, 5, 100, 1<<40, -1)}
		askBoth(t, b, ctx, "read", func(conn grpc.ClientConnInterface) func(context.Context, *contentapi.ReadContentRequest, ...grpc.CallOption) (*contentapi.ReadContentResponse, error) {
			return gathered(content(conn).Read, new(contentapi.ReadContentResponse), func(whole, part *contentapi.ReadContentResponse) {
				whole.Data = append(whole.Data, part.Data...)
			})
		}, req)
	case 6:
		askBoth(t, b, ctx, "abort", asked(content, contentapi.ContentClient.Abort), &contentapi.AbortRequest{Ref: p.ref()})
	case 7:
		askBoth(t, b, ctx, "status", func(conn grpc.ClientConnInterface) func(context.Context, *contentapi.StatusRequest, ...grpc.CallOption) (*contentapi.StatusResponse, error) {
			return func(ctx context.Context, req *contentapi.StatusRequest, _ ...grpc.CallOption) (*contentapi.StatusResponse, error) {
				resp, err := content(conn).Status(ctx, req)
				if err == nil && standsForBlob(resp.Status) {
					return nil, status.Error(codes.NotFound, "stands for a blob")
				}
				return resp, err
			}
		}, &contentapi.StatusRequest{Ref: p.ref()})
	case 8:
		if p.IntN(3) == 0 { // and all that only it held
			askBoth(t, b, ctx, "end of lease", asked(leasesapi.NewLeasesClient, leasesapi.LeasesClient.Delete), &leasesapi.DeleteRequest{ID: "l", Sync: true})
			p.lists(ctx)
			p.lease(ns)
		}
	default:
		p.session(ns)
		p.lists(ctx)
	}
	if p.bad > before {
		p.forgetAll()
	}
}

// lists compares all that there is, and what filters find of it.
func (p contentPair) lists(ctx context.Context) {
	list := func(conn grpc.ClientConnInterface) func(context.Context, *contentapi.ListContentRequest, ...grpc.CallOption) (*contentapi.ListContentResponse, error) {
		return gathered(contentapi.NewContentClient(conn).List, new(contentapi.ListContentResponse), func(whole, part *contentapi.ListContentResponse) {
			whole.Info = append(whole.Info, part.Info...)
		})
	}
	askBoth(p.T, p.twoDaemons, ctx, "list", list, &contentapi.ListContentRequest{Filters: p.filters()})
	statuses := func(conn grpc.ClientConnInterface) func(context.Context, *contentapi.ListStatusesRequest, ...grpc.CallOption) (*contentapi.ListStatusesResponse, error) {
		return func(ctx context.Context, req *contentapi.ListStatusesRequest, _ ...grpc.CallOption) (*contentapi.ListStatusesResponse, error) {
			resp, err := contentapi.NewContentClient(conn).ListStatuses(ctx, req)
			if err == nil {
				resp.Statuses = slices.DeleteFunc(resp.Statuses, standsForBlob)
				slices.SortFunc(resp.Statuses, func(a, b *contentapi.Status) int { return strings.Compare(a.Ref, b.Ref) })
			}
			return resp, err
		}
	}
	askBoth(p.T, p.twoDaemons, ctx, "statuses", statuses, &contentapi.ListStatusesRequest{Filters: p.filters()})
	askBoth(p.T, p.twoDaemons, ctx, "resources", asked(leasesapi.NewLeasesClient, leasesapi.LeasesClient.ListResources), &leasesapi.ListResourcesRequest{ID: "l"})
}

// what is written under a reference. containerd loses its place where the total
// of an ingest changes, so it is told always or never.
var written = map[string]struct {
	body  string
	total bool
}{"r": {"hello", true}, "s": {strings.Repeat("long", 100<<10), false}, "a/b": {"", true}, "q": {"hello, world", true}, "h": {"hello", false}, "": {}}

// standsForBlob tells an ingest that is complete, as another namespace has its
// blob. Better: ours lists it, theirs does not.
func standsForBlob(s *contentapi.Status) bool { return s.Expected != "" }

// session is one stream of writes to both, message by message.
func (p contentPair) session(ns string) {
	plain := namespaced(p.T, ns)
	ctx, cancel := context.WithCancel(pick(p.choices, plain, plain, namespaced(p.T, ns, "containerd-lease", "none"),
		namespaced(p.T, ns, "containerd-lease", "l"), namespaced(p.T, ns, "containerd-lease", "l")))
	defer cancel()
	streams := make(map[grpc.ClientConnInterface]contentapi.Content_WriteClient)
	send := func(conn grpc.ClientConnInterface) func(context.Context, *contentapi.WriteContentRequest, ...grpc.CallOption) (*contentapi.WriteContentResponse, error) {
		return func(_ context.Context, req *contentapi.WriteContentRequest, _ ...grpc.CallOption) (*contentapi.WriteContentResponse, error) {
			for first := streams[conn] == nil; ; {
				if first {
					s, err := contentapi.NewContentClient(conn).Write(ctx)
					if err != nil {
						return nil, err
					}
					streams[conn] = s
				}
				if err := streams[conn].Send(req); err != nil && !errors.Is(err, io.EOF) {
					return nil, err
				}
				resp, err := streams[conn].Recv()
				if first && status.Code(err) == codes.Unavailable && strings.Contains(err.Error(), "locked") {
					continue // by the session before, whose client went away
				}
				if err == nil && req.Action != contentapi.WriteAction_STAT {
					// Better: ours also tells them where the API asks for it, after a commit.
					resp.StartedAt, resp.UpdatedAt, resp.Total = nil, nil, 0
				}
				return resp, err
			}
		}
	}
	ref, at := p.ref(), int64(0)
	resumed := false
	if st, err := contentapi.NewContentClient(p.ours).Status(plain, &contentapi.StatusRequest{Ref: ref}); err == nil {
		resumed, at = true, st.Status.Offset
	}
	for i := range 1 + p.IntN(5) {
		req := p.message(ref, at, i == 0)
		if i == 0 && resumed {
			req.Expected = "" // theirs takes over a blob of another namespace; ours goes on
		}
		resp, ok := askBoth(p.T, p.twoDaemons, ctx, "write", send, req)
		if !ok && req.Action == contentapi.WriteAction_COMMIT && req.Expected != "" {
			p.forgetAll() // Better: ours has the lease hold what there is already
		}
		if !ok || req.Action == contentapi.WriteAction_COMMIT {
			break
		}
		at = resp.Offset
	}
	// Half of the clients go away in the middle.
	if p.IntN(2) == 0 {
		cancel()
	}
	for _, s := range streams {
		_ = s.CloseSend()
		for err := error(nil); err == nil; {
			_, err = s.Recv()
		}
	}
}

// message is one of a session that has written up to a byte, if all went well.
func (p contentPair) message(ref string, at int64, first bool) *contentapi.WriteContentRequest {
	body := written[ref].body
	req := &contentapi.WriteContentRequest{
		Action: pick(p.choices, contentapi.WriteAction_STAT, contentapi.WriteAction_WRITE, contentapi.WriteAction_WRITE, contentapi.WriteAction_COMMIT, contentapi.WriteAction_COMMIT),
		Ref:    ref, Offset: at,
	}
	if !first && p.IntN(3) == 0 {
		req.Ref = ""
	}
	if p.IntN(10) == 0 {
		req.Offset = pick(p.choices, int64(0), 1, 3, 100) // theirs takes negative ones for none
	}
	if at < int64(len(body)) && req.Action != contentapi.WriteAction_STAT {
		req.Data = []byte(body)[max(req.Offset, 0)%int64(len(body)+1):]
		if p.IntN(4) == 0 {
			req.Data = req.Data[:len(req.Data)/2]
		}
	}
	if written[ref].total {
		req.Total = int64(len(body))
	}
	if p.IntN(2) == 0 {
		req.Expected = digest.FromString(body).String()
	}
	if !first && p.IntN(12) == 0 {
		req.Total = pick(p.choices, int64(1), 5, 1000)
	} else if !first && p.IntN(12) == 0 {
		req.Expected = digest.FromString(pick(p.choices, p.bodies...)).String()
	}
	if req.Action == contentapi.WriteAction_COMMIT || p.IntN(8) == 0 {
		req.Labels = p.labels()
		delete(req.Labels, "") // theirs loses the ingest over it
	}
	return req
}

// forgetAll removes everything, so that a difference has no others for a consequence.
func (p contentPair) forgetAll() {
	for _, conn := range []grpc.ClientConnInterface{p.ours, p.theirs} {
		content := contentapi.NewContentClient(conn)
		for _, ns := range p.namespaces {
			ctx := namespaced(p.T, ns)
			all, err := gathered(content.List, new(contentapi.ListContentResponse), func(whole, part *contentapi.ListContentResponse) {
				whole.Info = append(whole.Info, part.Info...)
			})(ctx, &contentapi.ListContentRequest{})
			if err != nil {
				p.Fatal(err)
			}
			for _, info := range all.Info {
				_, _ = content.Delete(ctx, &contentapi.DeleteContentRequest{Digest: info.Digest})
			}
			leases := leasesapi.NewLeasesClient(conn)
			held, _ := leases.ListResources(ctx, &leasesapi.ListResourcesRequest{ID: "l"})
			for _, r := range held.GetResources() {
				if r.Type == "ingests" {
					_, _ = content.Abort(ctx, &contentapi.AbortRequest{Ref: r.ID})
				}
			}
			for _, ref := range []string{"r", "s", "a/b", "q", "h"} { // containerd does not list all
				_, _ = content.Abort(ctx, &contentapi.AbortRequest{Ref: ref})
			}
			_, _ = leases.Delete(ctx, &leasesapi.DeleteRequest{ID: "l", Sync: true})
			_, _ = leases.Create(ctx, &leasesapi.CreateRequest{ID: "l"})
		}
	}
}
