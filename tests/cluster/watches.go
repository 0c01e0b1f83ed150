package main

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"
)

// openLimit is the longest wait for the heads of all watches. It is longer than
// the time that an apiserver keeps a request in its queue.
const openLimit = 30 * time.Second

// watches opens many watches of one ConfigMap with one client, and then sends a
// timed GET with the same client. It prints three lines:
//
//	{"open": how many watches have a head, "connections": …, "get": status, "getMillis": …}
//	{"seen": how many}   when every open watch has seen an event
//	{"ended": how many watches ended by themselves}   when standard input ends
func watches(args []string) error {
	t := target{}
	flags := t.flags("watches")
	count := flags.Int("count", 50, "number of watches to open")
	name := flags.String("name", "watched", "name of the ConfigMap to watch")
	if err := flags.Parse(args); err != nil {
		return err
	}
	client, err := t.client()
	if err != nil {
		return err
	}
	ctx, cancel := untilInputEnds()
	defer cancel()

	// The first request opens a connection that the watches can share. Go's
	// client dials once for each request that finds no connection.
	if _, _, err := timedGet(&t, client); err != nil {
		return err
	}
	opened := make(chan error, *count)
	seen := make(chan struct{}, *count)
	ended := 0
	var mu sync.Mutex
	path := fmt.Sprintf("/api/v1/namespaces/%s/configmaps?watch=true&fieldSelector=metadata.name%%3D%s", namespace, *name)
	for range *count {
		go func() {
			request, err := t.request(ctx, path)
			if err != nil {
				opened <- err
				return
			}
			response, err := client.Do(request)
			if err == nil && response.StatusCode != http.StatusOK {
				err = fmt.Errorf("status %d", response.StatusCode)
			}
			opened <- err
			if err != nil {
				return
			}
			defer response.Body.Close()
			events := bufio.NewReader(response.Body)
			for first := true; ; first = false {
				if _, err := events.ReadBytes('\n'); err != nil {
					break
				}
				if first {
					seen <- struct{}{}
				}
			}
			mu.Lock()
			defer mu.Unlock()
			if ctx.Err() == nil {
				ended++
			}
		}()
	}
	open, reasons := countOpen(opened, *count)
	status, took, err := timedGet(&t, client)
	if err != nil {
		reasons = append(reasons, "get: "+err.Error())
	}
	if err := printJSON(map[string]any{
		"open": open, "connections": t.connections.Load(), "errors": reasons,
		"get": status, "getMillis": took.Milliseconds(),
	}); err != nil {
		return err
	}
	for n := range open {
		select {
		case <-seen:
			if n+1 == open {
				if err := printJSON(map[string]int{"seen": open}); err != nil {
					return err
				}
			}
		case <-ctx.Done():
		}
	}
	<-ctx.Done()
	mu.Lock()
	defer mu.Unlock()
	return printJSON(map[string]int{"ended": ended})
}

func countOpen(opened <-chan error, count int) (open int, reasons []string) {
	limit := time.After(openLimit)
	for range count {
		select {
		case err := <-opened:
			if err == nil {
				open++
			} else {
				reasons = append(reasons, err.Error())
			}
		case <-limit:
			return open, append(reasons, "the other watches have no response head yet")
		}
	}
	return open, reasons
}

func timedGet(t *target, client *http.Client) (status int, took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), openLimit)
	defer cancel()
	request, err := t.request(ctx, "/api/v1/namespaces/"+namespace)
	if err != nil {
		return 0, 0, err
	}
	start := time.Now()
	response, err := client.Do(request)
	if err != nil {
		return 0, time.Since(start), err
	}
	response.Body.Close()
	return response.StatusCode, time.Since(start), nil
}
