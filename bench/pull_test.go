package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"berth/internal/registry/registrytest"
	"berth/test/testimage"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	transferapi "github.com/containerd/containerd/api/services/transfer/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/transfer"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/anypb"
)

// fileLayer is a layer of n bytes in files that compress about as programs do.
func fileLayer(b *testing.B, seed uint64, n int) []byte {
	b.Helper()
	random := rand.New(rand.NewPCG(seed, 1))
	words := make([][]byte, 4096)
	for i := range words {
		words[i] = make([]byte, 3+random.IntN(12))
		for j := range words[i] {
			words[i][j] = byte(random.Uint32())
		}
	}
	var entries []testimage.Entry
	for i := 0; n > 0; i++ {
		size := min(n, 1<<12+random.IntN(1<<19))
		n -= size
		body := make([]byte, 0, size+16)
		for len(body) < size {
			body = append(body, words[random.IntN(len(words))]...)
		}
		entries = append(entries, testimage.File(fmt.Sprintf("%d-%d", seed, i), 0o644, body[:size]))
	}
	layer, err := testimage.Layer(entries...)
	if err != nil {
		b.Fatal(err)
	}
	return layer
}

func layers(b *testing.B, sizes ...int) (out [][]byte, total int64) {
	for i, n := range sizes {
		out = append(out, fileLayer(b, uint64(i), n<<20))
		total += int64(n) << 20
	}
	return out, total
}

// shapes are images by the sizes of their layers in MiB.
var shapes = []struct {
	name        string
	compression testimage.Compression
	sizes       []int
}{
	{"6layers-gzip", testimage.Gzip, []int{64, 32, 16, 8, 4, 4}},
	{"1layer-gzip", testimage.Gzip, []int{126, 2}},
	{"1layer-zstd", testimage.Zstd, []int{126, 2}},
}

// BenchmarkPull pulls and unpacks from a registry in the benchmark's process;
// the rate is that of the unpacked bytes.
func BenchmarkPull(b *testing.B) {
	for _, s := range shapes {
		b.Run(s.name, func(b *testing.B) {
			conn, ctx := connect(b)
			srv := registrytest.New(b)
			ls, total := layers(b, s.sizes...)
			serve(b, srv, testimage.Image{Layers: ls, Compression: s.compression})
			ref := srv.Host + "/bench:1"
			b.SetBytes(total)
			for b.Loop() {
				source, err := anypb.New(&transfer.OCIRegistry{Reference: ref, Resolver: &transfer.RegistryResolver{DefaultScheme: "http"}})
				if err != nil {
					b.Fatal(err)
				}
				platform := &types.Platform{OS: "linux", Architecture: "amd64"}
				destination, err := anypb.New(&transfer.ImageStore{Name: ref, Platforms: []*types.Platform{platform}, Unpacks: []*transfer.UnpackConfiguration{{Platform: platform}}})
				if err != nil {
					b.Fatal(err)
				}
				if _, err := transferapi.NewTransferClient(conn).Transfer(unleased(ctx), &transferapi.TransferRequest{Source: plainURL(source), Destination: plainURL(destination)}); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				remove(b, ctx, imagesapi.NewImagesClient(conn), ref)
				b.StartTimer()
			}
		})
	}
}

// BenchmarkImport imports an archive as docker save writes it, and one of OCI's layout.
func BenchmarkImport(b *testing.B) {
	ls, total := layers(b, 64, 32, 16, 8, 4, 4)
	img := testimage.Image{Names: []string{"example.com/import:1"}, Layers: ls}
	var save, oci bytes.Buffer
	if err := img.WriteDocker(&save); err != nil {
		b.Fatal(err)
	}
	if err := testimage.WriteOCI(&oci, img); err != nil {
		b.Fatal(err)
	}
	for name, archive := range map[string][]byte{"docker-save": save.Bytes(), "oci": oci.Bytes()} {
		b.Run(name, func(b *testing.B) {
			conn, ctx := connect(b)
			b.SetBytes(total)
			for b.Loop() {
				cmd := exec.CommandContext(ctx, filepath.Join(programs(), "ctr"), "-a", server.addr, "-n", namespace, "images", "import", "-")
				cmd.Stdin = bytes.NewReader(archive)
				if out, err := cmd.CombinedOutput(); err != nil {
					b.Fatalf("%v: %s", err, out)
				}
				b.StopTimer()
				remove(b, ctx, imagesapi.NewImagesClient(conn), "example.com/import:1")
				b.StartTimer()
			}
		})
	}
}

// serve puts an image into the registry.
func serve(b *testing.B, srv *registrytest.Registry, img testimage.Image) {
	b.Helper()
	blobs, err := img.Blobs()
	if err != nil {
		b.Fatal(err)
	}
	last := len(blobs) - 1
	for _, blob := range blobs[:last] {
		srv.AddBlob(blob.MediaType, blob.Data)
	}
	if !json.Valid(blobs[last].Data) {
		b.Fatal("the last blob is no manifest")
	}
	srv.AddManifest("bench", ispec.MediaTypeImageManifest, blobs[last].Data, "1")
}

// remove waits for the collector: the next round begins with nothing.
func remove(b *testing.B, ctx context.Context, images imagesapi.ImagesClient, ref string) {
	b.Helper()
	if _, err := images.Delete(unleased(ctx), &imagesapi.DeleteImageRequest{Name: ref, Sync: true}); err != nil {
		b.Fatal(err)
	}
}

// unleased is the context without the lease that would keep what is pulled.
func unleased(ctx context.Context) context.Context {
	md, _ := metadata.FromOutgoingContext(ctx)
	md = md.Copy()
	md.Delete("containerd-lease")
	return metadata.NewOutgoingContext(ctx, md)
}

// plainURL gives a message its name as containerd's clients write it.
func plainURL(a *anypb.Any) *anypb.Any {
	a.TypeUrl = string(a.MessageName())
	return a
}

// programs is the directory of the programs that are measured.
func programs() string {
	if bin := os.Getenv("BERTH_BIN"); bin != "" {
		return bin
	}
	bin, _ := filepath.Abs("../bin")
	return bin
}
