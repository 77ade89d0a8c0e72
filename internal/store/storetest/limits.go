package storetest

import (
	"errors"
	"time"

	"offpeak/internal/batch"
)

// firstCome grants what is left of what is stated, and nothing less than is kept.
func firstCome(d batch.Division) (batch.Grant, batch.Search) {
	left := d.Mine.Stated
	for _, h := range d.Others {
		left -= h.Granted
	}
	n := max(d.Mine.Keeps, min(d.Mine.Wants, left))
	d.Search.Node, d.Search.Found, d.Search.At = d.Node, d.Search.Found+1, d.Now
	return batch.Grant{Upstream: d.Mine.Upstream, Limit: d.Mine.Limit, Of: d.Mine.Stated, Holds: n, May: n, Since: d.Now}, d.Search
}

// share has a node ask for calls in flight at the upstreams.
func (d *db) share(node string, stated, keeps, wants int64, upstreams ...string) []batch.Grant {
	d.Helper()
	var claims []batch.Claim
	for _, name := range upstreams {
		claims = append(claims, batch.Claim{Upstream: name, Limit: batch.LimitCalls, Stated: stated, Keeps: keeps, Wants: wants, Least: 1})
	}
	grants, err := d.Share(d.ctx(), node, claims, firstCome)
	d.must(err)
	return grants
}

// testLimits has nodes share limits.
func testLimits(d *db) {
	other := d.other
	if d.Alone { // then it is dead: see Join
		if _, err := d.Share(d.ctx(), d.other, nil, firstCome); !errors.Is(err, batch.ErrDeclaredDead) {
			d.Errorf("a dead node asks: %v", err)
		}
		other = ""
	}
	if g := d.share(d.node, 8, 0, 6, "a", "b"); len(g) != 2 || g[0].Upstream != "a" || g[0].May != 6 || g[1].May != 6 {
		d.Errorf("granted %+v, want 6 of each", g)
	}
	if other == "" {
		return
	}
	if g := d.share(other, 8, 0, 6, "b", "c"); g[0].May != 2 || g[1].May != 6 {
		d.Errorf("granted %+v, want 2 and 6", g)
	}
	if g := d.share(d.node, 8, 3, 1, "b"); g[0].May != 3 { // and gives back what it has of a
		d.Errorf("granted %+v, want the 3 that are kept", g)
	}
	if g := d.share(other, 8, 2, 9, "b", "a"); g[0].May != 5 || g[1].May != 8 {
		d.Errorf("granted %+v, want 5 and 8", g)
	}

	// What divide is told is what was recorded.
	want := []batch.Holding{{Node: other, Stated: 8, Granted: 5, Uses: 0, Wants: 9, Least: 1, Since: d.clock.Now()}}
	d.clock.turn(time.Second)
	_, err := d.Share(d.ctx(), d.node, []batch.Claim{
		{Upstream: "b", Limit: batch.LimitCalls, Auto: true, Keeps: 4, Uses: 3, Wants: 7, Least: 2},
		{Upstream: "b", Limit: batch.LimitTokens, Keeps: 4, Wants: 7},
	}, func(v batch.Division) (batch.Grant, batch.Search) {
		if v.Mine.Limit == batch.LimitTokens {
			d.wantSame("others of a limit that nobody else claims", len(v.Others), 0)
			return batch.Grant{Since: v.Now}, v.Search
		}
		d.wantSame("others", v.Others, want)
		d.wantSame("mine", v.Had, batch.Holding{Node: d.node, Stated: 8, Granted: 3, Wants: 1, Least: 1, Since: d.clock.Now().Add(-time.Second)})
		d.wantSame("the search", v.Search, batch.Search{Node: other, Found: 4, At: d.clock.Now().Add(-time.Second)})
		d.wantSame("the time", v.Now, d.clock.Now())
		return batch.Grant{Holds: 4, Since: v.Now}, v.Search
	})
	d.must(err)
	_, err = d.Share(d.ctx(), other, []batch.Claim{{Upstream: "b", Limit: batch.LimitCalls}}, func(v batch.Division) (batch.Grant, batch.Search) {
		d.wantSame("others", v.Others, []batch.Holding{{Node: d.node, Auto: true, Granted: 4, Uses: 3, Wants: 7, Least: 2, Since: d.clock.Now()}})
		return batch.Grant{Since: v.Now}, v.Search
	})
	d.must(err)

	// A question that is not answered leaves everything as it was.
	_, err = d.Share(d.ctx(), "nobody", []batch.Claim{{Upstream: "b", Limit: batch.LimitCalls}}, firstCome)
	if !errors.Is(err, batch.ErrDeclaredDead) {
		d.Errorf("a node that never joined asks: %v", err)
	}
}

// testLimitsOfTheDead has nodes end. What they had in flight is free at once, and what they may have
// spent in their last minute a minute later; or at once if the clock is set back, as nobody can tell then.
func testLimitsOfTheDead(d *db) {
	ends := d.other
	if d.Alone {
		ends = d.node
	}
	claims := []batch.Claim{
		{Upstream: "a", Limit: batch.LimitCalls, Stated: 8, Wants: 8},
		{Upstream: "a", Limit: batch.LimitRequests, Stated: 60, Wants: 50},
	}
	_, err := d.Share(d.ctx(), ends, claims, firstCome)
	d.must(err)
	d.clock.turn(time.Hour) // whenever it asked last
	if d.Alone {
		d.reopen()
	} else {
		d.must(d.Leave(d.ctx(), ends))
	}
	if _, err := d.Share(d.ctx(), ends, claims, firstCome); !errors.Is(err, batch.ErrDeclaredDead) {
		d.Errorf("a node that has ended asks: %v", err)
	}
	for _, test := range []struct {
		turn     time.Duration
		requests int64
	}{{0, 10}, {-time.Hour, 50}, {time.Hour, 10}, {time.Minute, 10}, {2 * time.Second, 50}} {
		d.clock.turn(test.turn)
		grants, err := d.Share(d.ctx(), d.node, claims, func(v batch.Division) (batch.Grant, batch.Search) {
			for _, h := range v.Others {
				if !h.Ended {
					d.Errorf("%+v counts as living", h)
				}
			}
			v.Had, v.Mine.Keeps = batch.Holding{}, 0
			return firstCome(v)
		})
		d.must(err)
		if grants[0].May != 8 || grants[1].May != test.requests {
			d.Errorf("granted %+v, want 8 and %d", grants, test.requests)
		}
	}
}
