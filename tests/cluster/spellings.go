package main

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"
)

// spellings sends one request for each line "METHOD TARGET" of standard input,
// with the target byte for byte, and prints {"status": [...]}. The status is 0 if
// the server closed the connection without a response. The User-Agent of a
// request is "spelling-N", so that it can be found in the audit log.
func spellings(args []string) error {
	t := target{}
	if err := t.flags("spellings").Parse(args); err != nil {
		return err
	}
	client, err := t.client()
	if err != nil {
		return err
	}
	config := client.Transport.(*http.Transport).TLSClientConfig
	address := strings.TrimPrefix(t.server, "https://")
	statuses := []int{}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		method, path, _ := strings.Cut(lines.Text(), " ")
		head := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\nUser-Agent: spelling-%d\r\n",
			method, path, address, t.token, len(statuses))
		for _, header := range t.headers {
			head += header + "\r\n"
		}
		status, err := exchange(address, config, head+"Content-Length: 0\r\nConnection: close\r\n\r\n")
		if err != nil {
			return fmt.Errorf("%s: %w", lines.Text(), err)
		}
		statuses = append(statuses, status)
	}
	return printJSON(map[string]any{"status": statuses})
}

// exchange sends these bytes on a new connection, and returns the status of the
// response.
func exchange(address string, config *tls.Config, request string) (int, error) {
	connection, err := tls.Dial("tcp", address, config)
	if err != nil {
		return 0, err
	}
	defer connection.Close()
	if err := connection.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return 0, err
	}
	if _, err := io.WriteString(connection, request); err != nil {
		return 0, err
	}
	response, err := http.ReadResponse(bufio.NewReader(connection), nil)
	if err != nil {
		return 0, nil
	}
	return response.StatusCode, nil
}
