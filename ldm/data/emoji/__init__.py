"""The set emoji-styles: drawings of the same things in eight styles, from npm packages. `things` says what it shows, `styles` which drawing
is of what, `source` makes records of them."""
