// Checks a ledger with Go's checksum-database packages (golang.org/x/mod/sumdb), which share nothing with ours:
// the signature of the checkpoint, our proofs, and proofs that Go makes from our tiles.
package main

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type question struct {
	Directory   string
	Key         string
	Records     []record
	Consistency []consistency
}

type record struct {
	Index  int64
	Sha256 string
	Proof  []string
}

type consistency struct {
	Size  int64
	Root  string
	Proof []string
}

// tiles reads C2SP tlog-tiles paths, which leave out the height that the checksum database has in its own.
type tiles struct{ directory string }

func (t tiles) Height() int { return 8 }

func (t tiles) ReadTiles(wanted []tlog.Tile) ([][]byte, error) {
	var found [][]byte
	for _, tile := range wanted {
		path := strings.Replace(tile.Path(), "tile/8/", "tile/", 1)
		data, err := os.ReadFile(filepath.Join(t.directory, path))
		if os.IsNotExist(err) && tile.W < 256 {
			full := tile
			full.W = 256
			path = strings.Replace(full.Path(), "tile/8/", "tile/", 1)
			data, err = os.ReadFile(filepath.Join(t.directory, path))
			if err == nil {
				data = data[:tile.W*tlog.HashSize]
			}
		}
		if err != nil {
			return nil, err
		}
		found = append(found, data)
	}
	return found, nil
}

func (t tiles) SaveTiles([]tlog.Tile, [][]byte) {}

func must(err error, what string) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", what, err)
		os.Exit(1)
	}
}

func hash(text string) tlog.Hash {
	data, err := hex.DecodeString(text)
	must(err, "hash")
	var h tlog.Hash
	if copy(h[:], data) != tlog.HashSize {
		must(fmt.Errorf("%d bytes", len(data)), "hash")
	}
	return h
}

func hashes(texts []string) []tlog.Hash {
	var found []tlog.Hash
	for _, text := range texts {
		found = append(found, hash(text))
	}
	return found
}

func same(a, b []tlog.Hash) error {
	if fmt.Sprint(a) != fmt.Sprint(b) {
		return fmt.Errorf("%v is not %v", a, b)
	}
	return nil
}

func main() {
	var asked question
	must(json.NewDecoder(os.Stdin).Decode(&asked), "question")
	verifier, err := note.NewVerifier(asked.Key)
	must(err, "key")
	data, err := os.ReadFile(filepath.Join(asked.Directory, "checkpoint"))
	must(err, "checkpoint")
	signed, err := note.Open(data, note.VerifierList(verifier))
	must(err, "signature")
	lines := strings.Split(signed.Text, "\n")
	size, err := strconv.ParseInt(lines[1], 10, 64)
	must(err, "size")
	rootBytes, err := base64.StdEncoding.DecodeString(lines[2])
	must(err, "root")
	var root tlog.Hash
	copy(root[:], rootBytes)
	reader := tlog.TileHashReader(tlog.Tree{N: size, Hash: root}, tiles{asked.Directory})
	made, err := tlog.TreeHash(size, reader)
	must(err, "tiles")
	must(same([]tlog.Hash{made}, []tlog.Hash{root}), "root from tiles")
	for _, one := range asked.Records {
		digest := hash(one.Sha256)
		leaf := tlog.RecordHash(digest[:])
		must(tlog.CheckRecord(hashes(one.Proof), size, root, one.Index, leaf), "our inclusion proof")
		own, err := tlog.ProveRecord(size, one.Index, reader)
		must(err, "inclusion proof from our tiles")
		must(same(own, hashes(one.Proof)), "inclusion proofs")
	}
	for _, one := range asked.Consistency {
		must(tlog.CheckTree(hashes(one.Proof), size, root, one.Size, hash(one.Root)), "our consistency proof")
		own, err := tlog.ProveTree(size, one.Size, reader)
		must(err, "consistency proof from our tiles")
		must(same(own, hashes(one.Proof)), "consistency proofs")
	}
	fmt.Printf("%s: %d records, %d and %d proofs\n", lines[0], size, len(asked.Records), len(asked.Consistency))
}
