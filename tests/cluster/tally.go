package main

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// tally counts the outcomes of many requests.
type tally struct {
	mu sync.Mutex
	// Status counts responses by status code.
	Status map[string]int `json:"status"`
	// Errors counts requests without a response by error.
	Errors map[string]int `json:"errors"`
	// Protocols counts responses by protocol version.
	Protocols map[string]int `json:"protocols"`
	// BareUnavailable counts 503 responses without a Retry-After.
	BareUnavailable int `json:"bareUnavailable"`
}

func newTally() *tally {
	return &tally{Status: map[string]int{}, Errors: map[string]int{}, Protocols: map[string]int{}}
}

// try sends a request, reads the whole body, and counts the outcome.
func (t *tally) try(client *http.Client, request *http.Request) {
	response, err := client.Do(request)
	if err == nil {
		_, err = io.Copy(io.Discard, response.Body)
		response.Body.Close()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		t.Errors[err.Error()]++
		return
	}
	t.Status[strconv.Itoa(response.StatusCode)]++
	t.Protocols[response.Proto]++
	if response.StatusCode == http.StatusServiceUnavailable && response.Header.Get("Retry-After") == "" {
		t.BareUnavailable++
	}
}

// hammer sends a fixed number of requests at a fixed rate, without waiting for
// earlier responses, and then prints the tally.
func hammer(args []string) error {
	t := target{timeout: 30 * time.Second}
	flags := t.flags("hammer")
	path := flags.String("path", "/version", "path and query")
	rate := flags.Int("rate", 20, "requests per second")
	count := flags.Int("count", 100, "number of requests to send")
	if err := flags.Parse(args); err != nil {
		return err
	}
	client, err := t.client()
	if err != nil {
		return err
	}
	tally := newTally()
	var under sync.WaitGroup
	tick := time.NewTicker(time.Second / time.Duration(*rate))
	defer tick.Stop()
	for range *count {
		<-tick.C
		request, err := t.request(context.Background(), *path)
		if err != nil {
			return err
		}
		under.Go(func() { tally.try(client, request) })
	}
	under.Wait()
	return printJSON(map[string]any{"tally": tally, "connections": t.connections.Load()})
}

// gets sends one request after the other until standard input ends, and then
// prints the tally.
func gets(args []string) error {
	t := target{timeout: 30 * time.Second}
	flags := t.flags("gets")
	path := flags.String("path", "/version", "path and query")
	interval := flags.Duration("interval", 20*time.Millisecond, "time between two requests")
	if err := flags.Parse(args); err != nil {
		return err
	}
	client, err := t.client()
	if err != nil {
		return err
	}
	ctx, cancel := untilInputEnds()
	defer cancel()
	tally := newTally()
	tick := time.NewTicker(*interval)
	defer tick.Stop()
	for first := true; ; first = false {
		// The end of input does not cancel the request: that would count as an
		// error of the apiserver or the proxy.
		request, err := t.request(context.Background(), *path)
		if err != nil {
			return err
		}
		tally.try(client, request)
		if first {
			if err := printJSON(map[string]bool{"started": true}); err != nil {
				return err
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return printJSON(map[string]any{"tally": tally, "connections": t.connections.Load()})
		}
	}
}
