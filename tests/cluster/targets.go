package main

import (
	"io"
	"net"
)

// sourceBytes is the number of bytes that the source server sends per connection.
const sourceBytes = 8 << 20

// startForwardTargets serves the two TCP ports for the cases of port-forward.
// `echo` returns every byte until the client stops sending. `source` sends first:
// it sends sourceBytes bytes and closes the connection.
func startForwardTargets() (echo, source int, stop func(), err error) {
	echo, stopEcho, err := listenAndEach(func(connection net.Conn) {
		_, _ = io.Copy(connection, connection)
	})
	if err != nil {
		return 0, 0, nil, err
	}
	source, stopSource, err := listenAndEach(func(connection net.Conn) {
		_, _ = io.CopyN(connection, &counting{}, sourceBytes)
	})
	if err != nil {
		stopEcho()
		return 0, 0, nil, err
	}
	return echo, source, func() { stopEcho(); stopSource() }, nil
}

func listenAndEach(serve func(net.Conn)) (port int, stop func(), err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, nil, err
	}
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer connection.Close()
				serve(connection)
			}()
		}
	}()
	return listener.Addr().(*net.TCPAddr).Port, func() { listener.Close() }, nil
}

// counting is an endless stream of 0, 1, 2, … 250, 0, … Its period is not a power
// of two, so that a lost, doubled or moved block is visible.
type counting struct{ next byte }

func (c *counting) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = c.next
		if c.next++; c.next == 251 {
			c.next = 0
		}
	}
	return len(p), nil
}
