package compat

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/go-digest"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"strings"
)

// TestManyClients has a thousand clients, each with a connection of its own, write
// and read at the same time; then half of them go away in the middle. What was
// acknowledged is there, and nothing else is left.
func TestManyClients(t *testing.T) {
	n := newNode(t, "")
	c := n.start(oursBin)
	ctx := namespaces.WithNamespace(t.Context(), "many")
	const clients = 1000
	n.leaks("a thousand clients", func() {
		var wg sync.WaitGroup
		failed := make(chan error, clients)
		for i := range clients {
			wg.Go(func() {
				if err := oneOfMany(ctx, n.addr, i); err != nil {
					failed <- fmt.Errorf("client %d: %w", i, err)
				}
			})
		}
		wg.Wait()
		close(failed)
		for err := range failed {
			t.Error(err)
			break
		}
	})
	list, err := c.Containers(ctx)
	if err != nil || len(list) != clients {
		t.Errorf("%d containers, %v, want %d", len(list), err, clients)
	}
	blobs := 0
	if err := c.ContentStore().Walk(ctx, func(content.Info) error { blobs++; return nil }); err != nil || blobs != clients {
		t.Errorf("%d blobs, %v, want %d", blobs, err, clients)
	}
	if ingests, err := c.ContentStore().ListStatuses(ctx); err != nil || len(ingests) != clients/2 {
		t.Errorf("%d ingests, %v, want those of the clients that went away: %d", len(ingests), err, clients/2)
	}
}

func oneOfMany(ctx context.Context, addr string, i int) error {
	c, err := client.New(addr)
	if err != nil {
		return err
	}
	defer c.Close()
	id := fmt.Sprint("c", i)
	l, err := c.LeasesService().Create(ctx, leases.WithID(id))
	if err != nil {
		return err
	}
	ctx = leases.WithLease(ctx, l.ID)
	data := strings.Repeat(id, 1000)
	desc := ispec.Descriptor{Digest: digest.FromString(data), Size: int64(len(data))}
	if err := content.WriteBlob(ctx, c.ContentStore(), id, strings.NewReader(data), desc); err != nil {
		return err
	}
	if _, err := c.NewContainer(ctx, id, client.WithNewSpec(oci.WithProcessArgs("true"))); err != nil {
		return err
	}
	if _, err := c.Containers(ctx, "id=="+id); err != nil {
		return err
	}
	if i%2 == 0 {
		w, err := c.ContentStore().Writer(ctx, content.WithRef("torn-"+id))
		if err != nil {
			return err
		}
		if _, err := w.Write([]byte(data)); err != nil {
			return err
		}
	}
	return nil
}
