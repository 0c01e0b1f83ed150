// Writes members.bin: go run members.go > members.bin
package main

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
)

// main writes gzip members as kube-apiserver makes them for a compressed watch:
// level 1, then Flush and Close after each group of events. Each member follows
// its length, a big-endian integer of four bytes.
func main() {
	var many bytes.Buffer
	for n := range 40 {
		fmt.Fprintf(&many, `{"type":"ADDED","object":{"kind":"ConfigMap","metadata":{"name":"item-%d","resourceVersion":"%d"}}}`+"\n", n, n*7919)
	}
	// Too random to be compressed, so the bytes are copied into the member. They
	// hold the end of a flush, and the end of a member but for one byte.
	random := make([]byte, 300)
	for at := range random {
		random[at] = byte(generator.Uint32())
	}
	copy(random[100:], "\x00\x00\xff\xff\x01\x00\x00\xff\xfe")
	groups := [][]byte{
		[]byte(`{"type":"ADDED","object":{"kind":"ConfigMap"}}` + "\n"),
		[]byte(`{"type":"ADDED"}` + "\n" + `{"type":"DELETED"}` + "\n"),
		random,
		many.Bytes(),
	}
	for _, group := range groups {
		var member bytes.Buffer
		writer, err := gzip.NewWriterLevel(&member, 1)
		check(err)
		_, err = writer.Write(group)
		check(err)
		check(writer.Flush())
		check(writer.Close())
		check(binary.Write(os.Stdout, binary.BigEndian, uint32(member.Len())))
		_, err = os.Stdout.Write(member.Bytes())
		check(err)
	}
}

// generator always makes the same bytes.
var generator = rand.New(rand.NewPCG(1, 2))

func check(err error) {
	if err != nil {
		panic(err)
	}
}
