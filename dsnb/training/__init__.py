"""The recipe of the bundled model: a drawn world, its captions, and the networks that learn them.

    icons, scenery, world, filters, styles
                                     pictures, as a pure function of numbers, in any style or mix of styles
    captions                         what they are called, and the tokenizer
    autoencoder, clip, diffusion     the networks and what they minimise
    loop, stream                     one resumable training loop for all of them, and its fresh pictures
    judge, evaluate                  what a picture shows, and whether the model is good
    export, card, recipe             the Stable Diffusion folder, its model card, and the stages in order

`python -m dsnb.training --help` runs it. Nothing else in the package imports this.
"""
