package main

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
)

// veritySuffix is that of the file which describes an image's hash tree.
const veritySuffix = ".dmverity"

const (
	verityBlock = 4096
	veritySalt  = 32 // zeros, as containerd's
)

// addVerity appends a dm-verity hash tree to an image (kernel documentation,
// "dm-verity"; superblock as cryptsetup has it, version 1, SHA-256, blocks of
// 4096 bytes) and writes the root hash and its offset to a file beside it.
func addVerity(file string) error {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	blocks := (info.Size() + verityBlock - 1) / verityBlock
	offset := blocks * verityBlock
	if err := f.Truncate(offset); err != nil {
		return err
	}
	levels, root, err := verityTree(io.NewSectionReader(f, 0, offset))
	if err != nil {
		return err
	}
	w := io.NewOffsetWriter(f, offset)
	if _, err := w.Write(veritySuperblock(uint64(blocks))); err != nil {
		return err
	}
	for i := len(levels) - 1; i >= 0; i-- { // the top level comes first
		if _, err := w.Write(levels[i]); err != nil {
			return err
		}
	}
	doc, err := json.Marshal(struct {
		RootHash   string `json:"roothash"`
		HashOffset uint64 `json:"hashoffset"`
	}{hex.EncodeToString(root), uint64(offset)})
	if err != nil {
		return err
	}
	return os.WriteFile(file+veritySuffix, doc, 0o644)
}

// verityTree hashes whole blocks, level by level, until one block of hashes is
// left, whose hash is the root. Levels are padded to whole blocks.
func verityTree(data io.Reader) (levels [][]byte, root []byte, err error) {
	sum := func(b []byte) []byte {
		h := sha256.New()
		h.Write(make([]byte, veritySalt))
		h.Write(b)
		return h.Sum(nil)
	}
	pad := func(b []byte) []byte { return append(b, make([]byte, -len(b)&(verityBlock-1))...) }
	var level []byte
	block := make([]byte, verityBlock)
	n := 0
	for ; ; n++ {
		if _, err := io.ReadFull(data, block); err == io.EOF {
			break
		} else if err != nil {
			return nil, nil, err
		}
		level = append(level, sum(block)...)
	}
	switch n {
	case 0:
		return nil, nil, fmt.Errorf("there is nothing to hash")
	case 1:
		return nil, level, nil
	}
	for {
		level = pad(level)
		levels = append(levels, level)
		if len(level) == verityBlock {
			return levels, sum(level), nil
		}
		var next []byte
		for i := 0; i < len(level); i += verityBlock {
			next = append(next, sum(level[i:i+verityBlock])...)
		}
		level = next
	}
}

func veritySuperblock(blocks uint64) []byte {
	b := make([]byte, verityBlock)
	copy(b, "verity\x00\x00")
	le := binary.LittleEndian
	le.PutUint32(b[8:], 1)  // version
	le.PutUint32(b[12:], 1) // hash type
	rand.Read(b[16:32])     // UUID
	b[22], b[24] = b[22]&0x0f|0x40, b[24]&0x3f|0x80
	copy(b[32:64], "sha256")
	le.PutUint32(b[64:], verityBlock)
	le.PutUint32(b[68:], verityBlock)
	le.PutUint64(b[72:], blocks)
	le.PutUint16(b[80:], veritySalt)
	return b
}
