package compat

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

// A thousand clients, each on a connection of its own, make, change, list and
// delete records at the same time. Afterwards the daemon has as many goroutines
// and descriptors as before; and when it is killed and started again, all that
// was acknowledged is there, and nothing that was deleted.
func TestThousandClients(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the daemon needs root")
	}
	dir, err := os.MkdirTemp("", "berth-compat-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	config := fmt.Sprintf("version = 3\nroot = %[1]q\nstate = %[2]q\n[grpc]\naddress = %[3]q\n[ttrpc]\naddress = %[4]q\n[debug]\naddress = %[5]q\n",
		dir+"/root", dir+"/state", dir+"/c.sock", dir+"/t.sock", dir+"/debug.sock")
	if err := os.WriteFile(dir+"/config.toml", []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	dial := func() *grpc.ClientConn {
		conn, err := grpc.NewClient("unix://"+dir+"/c.sock", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.WaitForReady(true), grpc.MaxCallRecvMsgSize(64<<20)))
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	start := func() *exec.Cmd {
		cmd := exec.Command(filepath.Join(oursBin, "containerd"), "-c", dir+"/config.toml")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if cmd.ProcessState == nil {
				cmd.Process.Signal(syscall.SIGTERM)
				cmd.Wait()
			}
		})
		conn := dial()
		defer conn.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		if _, err := namespacesapi.NewNamespacesClient(conn).List(ctx, &namespacesapi.ListNamespacesRequest{}); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	daemon := start()
	goroutines, descriptors := goroutinesOf(t, dir+"/debug.sock"), descriptorsOf(t, daemon.Process.Pid)

	ctx := withNamespace(t, "thousand")
	var mu sync.Mutex
	want := map[string]string{} // ID of a container to its label
	gone := map[string]bool{}
	var clients sync.WaitGroup
	for i := range 1000 {
		clients.Go(func() {
			conn := dial()
			defer conn.Close()
			id := fmt.Sprintf("client-%d", i)
			if err := workload(ctx, conn, id, i); err != nil {
				t.Errorf("%s: %v", id, err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			want[id] = "changed"
			gone[id+"-gone"] = true
		})
	}
	clients.Wait()
	// What ends with a connection does so a moment after it.
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) { // deliberate: there is no sign of it
		g, d := goroutinesOf(t, dir+"/debug.sock"), descriptorsOf(t, daemon.Process.Pid)
		if g <= goroutines+10 && d <= descriptors+5 {
			break
		}
		if time.Now().After(deadline) {
			t.Errorf("%d goroutines and %d descriptors are left, there were %d and %d", g, d, goroutines, descriptors)
			break
		}
	}
	if err := daemon.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	daemon.Wait()
	start()
	conn := dial()
	defer conn.Close()
	list, err := containersapi.NewContainersClient(conn).List(ctx, &containersapi.ListContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list.Containers {
		if gone[c.ID] {
			t.Errorf("%s was deleted, and is there", c.ID)
		}
		if want[c.ID] == c.Labels["state"] {
			delete(want, c.ID)
		}
	}
	if len(want) > 0 {
		t.Errorf("%d acknowledged records are lost", len(want))
	}
	images, err := imagesapi.NewImagesClient(conn).List(ctx, &imagesapi.ListImagesRequest{})
	if err != nil || len(images.Images) != 500 {
		t.Errorf("%d images, %v", len(images.GetImages()), err)
	}
}

// workload is what each of the clients does.
func workload(ctx context.Context, conn *grpc.ClientConn, id string, i int) error {
	containers := containersapi.NewContainersClient(conn)
	record := &containersapi.Container{ID: id, Labels: map[string]string{"state": "new", "n": fmt.Sprint(i)}, Runtime: &containersapi.Container_Runtime{Name: "r"}, Spec: &anypb.Any{TypeUrl: "x", Value: make([]byte, 500)}}
	if _, err := containers.Create(ctx, &containersapi.CreateContainerRequest{Container: record}); err != nil {
		return err
	}
	if _, err := leasesapi.NewLeasesClient(conn).Create(ctx, &leasesapi.CreateRequest{ID: id}); err != nil {
		return err
	}
	if _, err := leasesapi.NewLeasesClient(conn).AddResource(ctx, &leasesapi.AddResourceRequest{ID: id, Resource: &leasesapi.Resource{Type: "snapshots/overlayfs", ID: id}}); err != nil {
		return err
	}
	if i%2 == 0 {
		image := &imagesapi.Image{Name: id, Target: &types.Descriptor{MediaType: "x", Digest: digest.FromString(id).String(), Size: 1}}
		if _, err := imagesapi.NewImagesClient(conn).Create(ctx, &imagesapi.CreateImageRequest{Image: image}); err != nil {
			return err
		}
	}
	list, err := containers.List(ctx, &containersapi.ListContainersRequest{Filters: []string{"labels.n==" + fmt.Sprint(i)}})
	if err != nil {
		return err
	}
	if len(list.Containers) != 1 || list.Containers[0].ID != id {
		return fmt.Errorf("its own record is not in the list: %v", list.Containers)
	}
	if i%50 == 0 { // one that stops in the middle of a list of everything
		c, cancel := context.WithCancel(ctx)
		stream, err := containers.ListStream(c, &containersapi.ListContainersRequest{})
		if err == nil {
			_, err = stream.Recv()
		}
		cancel()
		if err != nil {
			return err
		}
	}
	record.Labels["state"] = "changed"
	if _, err := containers.Update(ctx, &containersapi.UpdateContainerRequest{Container: record, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels.state"}}}); err != nil {
		return err
	}
	record.ID = id + "-gone"
	if _, err := containers.Create(ctx, &containersapi.CreateContainerRequest{Container: record}); err != nil {
		return err
	}
	if _, err := containers.Delete(ctx, &containersapi.DeleteContainerRequest{ID: record.ID}); err != nil {
		return err
	}
	_, err = leasesapi.NewLeasesClient(conn).Delete(ctx, &leasesapi.DeleteRequest{ID: id})
	return err
}

func goroutinesOf(t *testing.T, debug string) (n int) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", debug)
	}}}
	resp, err := client.Get("http://debug/debug/pprof/goroutine?debug=1")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	head, err := io.ReadAll(io.LimitReader(resp.Body, 64))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(strings.TrimSpace(string(head)), "goroutine profile: total %d", &n); err != nil {
		t.Fatalf("%q: %v", head, err)
	}
	return n
}

func descriptorsOf(t *testing.T, pid int) int {
	t.Helper()
	names, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}
