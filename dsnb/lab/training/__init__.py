"""The recipe of the bundled model: the networks that learn the drawn world and its captions.

    autoencoder, clip, diffusion     the networks and what they minimise
    loop, stream                     one resumable training loop for all of them, and its fresh images
    evaluator, evaluate              what an image shows, and whether the model is good
    probe                            the style classifier
    export, card, recipe             the Stable Diffusion folder, its model card, and the stages in order

`python -m dsnb.lab.training --help` runs it. Nothing else in the package imports this.
"""
